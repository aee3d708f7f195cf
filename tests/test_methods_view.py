"""`rlhf-dist algorithms`: two methods differ as their rows do, and each says what it reads."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from rlhf_dist.config import METHODS
from rlhf_dist.errors import ConfigError
from rlhf_dist.methods_view import WIDTH, cells, in_effect, resolved, show_method, show_methods


def printed(name: str | None = None, *, width: int = WIDTH) -> str:
    to = Console(file=io.StringIO(), width=width, highlight=False)
    if name is None:
        show_methods(to)
    else:
        show_method(to, name, Path(f"/elsewhere/{name}.yaml"))
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def test_two_methods_differ_as_their_rows_do() -> None:
    rows = {name: tuple(cells(name)[1:]) for name in METHODS}
    assert len({*rows.values()}) == len(METHODS)


@pytest.mark.parametrize("width", [WIDTH, 140])
def test_the_table_is_whole_where_it_is_as_wide_as_it_says(width: int) -> None:
    text = printed(width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    firsts = [line.split()[0] for line in text.splitlines() if line.split() and line[0] != " "]
    assert [name for name in METHODS if name not in firsts] == []


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_its_formulas_and_exactly_what_it_reads(name: str) -> None:
    text = " ".join(printed(name, width=250).split())
    method = METHODS[name]
    for said in (method.title, method.source, method.advantage, method.loss, method.bias, f"{name}.yaml"):
        assert " ".join(said.split()) in text
    shown = in_effect(name)
    assert not shown.keys() & resolved(name).idle().keys()
    assert {key for key in shown if "." not in key} >= {"baseline", "surrogate", "aggregate", "kl_coef"}
    assert shown["rollout.samples_per_prompt"] == str(method.rollout.get("samples_per_prompt", 1))


def test_the_kl_in_the_loss_says_what_its_gradient_is_of() -> None:
    assert "forward KL, reference to policy" in printed("grpo", width=250)
    assert "that of the KL where tokens are, without where they lead" in printed("reinforce_pp_baseline", width=250)
    assert "\nKL " not in printed("rloo", width=250)


def test_a_name_that_is_none_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no method is called 'dapoo'; did you mean dapo\\?"):
        printed("dapoo")
    with pytest.raises(ConfigError, match="no method is called 'x'; did you mean "):
        printed("x")
    with pytest.raises(ConfigError, match="kto learns from judgements, without rewards; expected `rlhf-dist dpo`"):
        printed("kto")
