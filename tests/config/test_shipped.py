"""A file for each method, and one with choices of one's own."""

import sys
from pathlib import Path

import pytest

from rlhf_dist.config import METHODS, Algorithm, RLConfig, load, read_yaml
from rlhf_dist.config.words import in_words
from rlhf_dist.errors import ConfigError
from rlhf_dist.learner.objective import check_own

CONFIGS = Path(__file__).parents[2] / "configs"
FOLDER = CONFIGS / "algorithms"
OURS = sorted(path.stem for path in FOLDER.glob("*.yaml") if "method:" in path.read_text())


def test_every_method_has_a_file_and_every_file_a_method() -> None:
    assert sorted(METHODS) == OURS


@pytest.mark.parametrize("name", OURS)
def test_a_methods_file_is_the_method_and_what_it_writes(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    config, written = load(RLConfig, path), read_yaml(path)
    resolved = Algorithm.model_validate(written["algorithm"])
    assert written["algorithm"]["method"] == name
    assert config.algorithm == resolved
    preset = Algorithm.model_validate({"method": name})
    differs = {key for key in Algorithm.model_fields if getattr(config.algorithm, key) != getattr(preset, key)}
    assert differs <= written["algorithm"].keys()
    assert (config.batch_samples, config.run_dir, config.rl.iterations) == (256, f"runs/{name}", 20)
    assert config.learner.critic == ("model" if name == "ppo" else "none")
    text = path.read_text()
    assert text.startswith(
        f"# {METHODS[name].title}:   rlhf-dist rl configs/algorithms/{name}.yaml\n# {METHODS[name].source}."
    )
    assert in_words(config)[0].startswith(f"method: {name} (")
    if config.algorithm.surrogate == "plain":
        assert config.ratio_is_one, "without a ratio later steps would learn from another policy's answers"
    else:
        assert config.rl.epochs * config.rl.mini_batches > 1, "else all surrogates are one"


def test_choices_of_ones_own_are_found_tried_and_in_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(RLConfig, CONFIGS / "own.yaml")
    with pytest.raises(
        ConfigError, match="algorithm.baseline is 'own_choices:median': ModuleNotFoundError: .*; expected"
    ):
        check_own(config.algorithm)
    monkeypatch.syspath_prepend(CONFIGS)
    check_own(config.algorithm)
    words = "\n".join(in_words(config))
    for name in ("own_choices:median", "own_choices:deviation", "own_choices:tempered", "0.1 brief"):
        assert name in words
    from own_choices import brief

    assert (brief("", "one two"), brief("", "word " * 40), brief("", "word " * 25)) == (1.0, 0.0, 0.5)


OWN = """
import torch

def shape(answers): return answers.rewards[:2]
def number(answers): return 0.5
def raises(answers): return answers.nothing
def infinite(answers): return answers.rewards / 0
def constant(new, old, advantages, lengths): return advantages
def short(new, old, advantages, lengths): return (new * advantages).sum()
def scale(centred, answers): return centred * torch.nan
value = 3
"""
BAD = {
    (
        "baseline",
        "shape",
    ): r"algorithm.baseline is 'mine:shape': it returned \[2\]; expected a tensor \[answers\], here \[5\]",
    ("baseline", "number"): r"it returned float; expected a tensor \[answers\]",
    ("baseline", "raises"): "on an example of 5 answers it raised AttributeError: .*nothing",
    ("baseline", "infinite"): "what it returned for an example is not finite; expected numbers",
    ("baseline", "value"): "algorithm.baseline is 'mine:value', which is int; expected a function",
    ("baseline", "missing"): "AttributeError: .*missing.*; expected package.module:function",
    ("scale", "scale"): "algorithm.scale is 'mine:scale': what it returned for an example is not finite",
    ("surrogate", "constant"): "its loss has no gradient; expected one of the new log-probs, its first argument",
    (
        "surrogate",
        "short",
    ): r"algorithm.surrogate is 'mine:short': it returned \[\]; expected a tensor \[tokens\], here \[12\]",
}


@pytest.mark.parametrize(("key", "name"), BAD)
def test_what_ones_own_function_does_wrong_is_one_sentence(
    key: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    algorithm = Algorithm.model_validate({"method": "rloo", key: f"mine:{name}"})
    with pytest.raises(ConfigError, match=BAD[key, name]) as told:
        check_own(algorithm)
    assert "\n" not in str(told.value)
