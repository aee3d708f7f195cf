"""What the documents name is there."""

import re
from pathlib import Path

import pytest
import typer

from rlhf_dist.cli import app
from rlhf_dist.config import METHODS, PipelineConfig, RewardConfig, RLConfig, keys

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "launch/README.md",
        "benchmarks/README.md",
        "configs/README.md",
        "rlhf_dist/feedback/README.md",
    )
]
BY_NAME = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(document: Path) -> set[str]:
    """Of each heading, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@BY_NAME
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@BY_NAME
def test_files_that_are_named_by_their_path_are_there(document: Path) -> None:
    named = re.findall(r"`?\b((?:rlhf_dist|configs|launch|benchmarks|tests)/[\w./-]*\w)", document.read_text())
    assert [path for path in named if not (ROOT / path).exists() and "/x.py" not in path and "test_x" not in path] == []


def options(words: list[str]) -> tuple[set[str], str]:
    """Options of a command as words say it, and its name."""
    command, said = typer.main.get_command(app), "rlhf-dist"
    for word in words:
        if word not in getattr(command, "commands", {}):
            break
        command, said = command.commands[word], f"{said} {word}"
    return {option for parameter in command.params for option in parameter.opts}, said


@BY_NAME
def test_commands_and_their_options_exist(document: Path) -> None:
    for words in re.findall(r"rlhf-dist ((?:[a-z]+|`)[^`\n|]*)", document.read_text()):
        known, said = options(words.split())
        assert said != "rlhf-dist" or words.split()[0] in ("doctor",), words
        for option in re.findall(r"(?<=\s)--[a-z-]+", words):
            assert option in known, f"{said} has no {option}"


def test_the_readme_is_read_in_minutes() -> None:
    assert len((ROOT / "README.md").read_text().split()) < 1250


def test_the_readme_of_the_configs_names_every_method_and_no_other() -> None:
    text = (ROOT / "configs" / "README.md").read_text()
    table = text.partition("| `algorithm.method` |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [*METHODS]


def test_settings_and_metrics_that_the_readme_of_the_configs_names_exist() -> None:
    text = (ROOT / "configs" / "README.md").read_text()
    known = {*keys(RLConfig), *keys(PipelineConfig), *keys(RewardConfig)}
    named = re.findall(r"`((?:algorithm|correction|rl|learner|rollout)\.(?!yaml)\w+)`", text)
    assert [name for name in named if name not in known] == []
    source = "".join(file.read_text() for file in (ROOT / "rlhf_dist").rglob("*.py"))
    for name in re.findall(r"`((?:rollout_corr|filter|sampling)/\w[\w/]*)`", text):
        assert name.removeprefix("rollout_corr/rollout_is") in source, name
