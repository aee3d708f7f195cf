"""Small changes to every formula, one at a time, and which of them the tests that mirror its module notice.

Comparisons, arithmetic, constants, conditions, keyword arguments and returns are changed in the syntax tree. Each mutant is
imported in a fork of this process, in which pytest runs a few files. One that survives is a test that is missing, or changes
nothing that anybody sees. `--quick` tries one in twenty.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TESTS: dict[str, tuple[str, ...]] = {
    "algorithms/advantages.py": ("algorithms/test_advantages.py",),
    "algorithms/aggregation.py": ("algorithms/test_aggregation.py",),
    "algorithms/answers.py": ("algorithms/test_baselines.py", "algorithms/test_scales.py"),
    "algorithms/baselines.py": ("algorithms/test_baselines.py",),
    "algorithms/corrections.py": ("algorithms/test_corrections.py",),
    "algorithms/entropy.py": ("algorithms/test_entropy.py",),
    "algorithms/feedback_losses.py": ("algorithms/test_feedback_losses.py",),
    "algorithms/filters.py": ("algorithms/test_filters.py",),
    "algorithms/kl.py": ("algorithms/test_kl.py",),
    "algorithms/ragged.py": ("algorithms/test_ragged.py",),
    "algorithms/scales.py": ("algorithms/test_scales.py",),
    "algorithms/surrogates.py": ("algorithms/test_surrogates.py",),
    "algorithms/value_losses.py": ("algorithms/test_value_losses.py",),
    "learner/own.py": ("learner/test_own.py",),
    "learner/scores.py": ("learner/test_scores.py",),
}
"""Modules, and the tests that each of their mutants should fail."""
SECONDS = 120
"""Of processor time, after which a mutant that does not end is caught."""

COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
Change = tuple[str, Callable[[Any], ast.AST]]
"""What is done to a node, and the node that comes of a copy of it."""


class Mutant(NamedTuple):
    """A module with one change."""

    file: str
    line: int
    what: str
    tree: ast.Module


def mutants_of(file: str) -> Iterator[Mutant]:
    """Every change to a module of the package."""
    source = (ROOT / "rlhf_dist" / file).read_text()
    tree = ast.parse(source)
    for place, node in enumerate(_code(tree)):
        for what, change in _changes(node):
            changed = copy.deepcopy(tree)
            _replace(changed, list(_code(changed))[place], change)
            line = getattr(node, "lineno", 0)
            yield Mutant(
                file, line, f"{source.splitlines()[line - 1].strip()}   ({what})", ast.fix_missing_locations(changed)
            )


def _code(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that do something when they run: no annotations, no messages, no docstrings, no imports."""
    for field, value in ast.iter_fields(tree):
        children = value if isinstance(value, list) else [value]
        if field in ("annotation", "returns", "decorator_list", "msg", "bases"):
            continue
        for child in children:
            if isinstance(child, ast.AST) and not isinstance(
                child, (ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Raise)
            ):
                yield child
                yield from _code(child)


def _changes(node: ast.AST) -> Iterator[Change]:
    """What may be done to a node."""
    for kind, of_kind in CHANGES.items():
        if isinstance(node, kind):
            yield from of_kind(node)


def _of_comparison(node: ast.Compare) -> Iterator[Change]:
    for other in COMPARED[type(node.ops[0])]:
        yield f"{type(node.ops[0]).__name__} to {other.__name__}", _with(ops=[other(), *node.ops[1:]])


def _of_arithmetic(node: ast.BinOp | ast.AugAssign) -> Iterator[Change]:
    if type(node.op) in COMPUTED:
        other = COMPUTED[type(node.op)]
        yield f"{type(node.op).__name__} to {other.__name__}", _with(op=other())


def _of_constant(node: ast.Constant) -> Iterator[Change]:
    if isinstance(node.value, bool):
        yield f"{node.value} negated", _with(value=not node.value)
    elif isinstance(node.value, (int, float)):
        for step in (-1, 1):
            yield f"{node.value} {step:+d}", _with(value=node.value + step)


def _of_call(node: ast.Call) -> Iterator[Change]:
    for index, keyword in enumerate(node.keywords):
        if keyword.arg != "device":  # which only a machine with two kinds of them notices
            yield f"without {keyword.arg}", partial(_without, index=index)


def _of_junction(node: ast.BoolOp) -> Iterator[Change]:
    yield "and with or", _with(op=ast.Or() if isinstance(node.op, ast.And) else ast.And())


def _of_sign(node: ast.UnaryOp) -> Iterator[Change]:
    yield f"without {type(node.op).__name__}", lambda here: here.operand


def _of_condition(node: ast.If | ast.IfExp) -> Iterator[Change]:
    yield "condition negated", lambda here: _set(here, test=ast.UnaryOp(ast.Not(), here.test))


def _of_return(node: ast.Return) -> Iterator[Change]:
    if node.value is not None:
        yield "returns nothing", _with(value=None)


CHANGES: dict[type[ast.AST], Callable[[Any], Iterator[Change]]] = {
    ast.Compare: _of_comparison,
    ast.BinOp: _of_arithmetic,
    ast.AugAssign: _of_arithmetic,
    ast.Constant: _of_constant,
    ast.Call: _of_call,
    ast.BoolOp: _of_junction,
    ast.UnaryOp: _of_sign,
    ast.If: _of_condition,
    ast.IfExp: _of_condition,
    ast.Return: _of_return,
}


def _without(call: ast.Call, *, index: int) -> ast.AST:
    return _set(call, keywords=[keyword for number, keyword in enumerate(call.keywords) if number != index])


def _with(**fields: Any) -> Callable[[Any], ast.AST]:
    return lambda node: _set(node, **fields)


def _set(node: ast.AST, **fields: Any) -> ast.AST:
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def _replace(tree: ast.AST, target: ast.AST, change: Callable[[Any], ast.AST]) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is target:
                setattr(parent, name, change(target))
                return
            if isinstance(value, list) and any(each is target for each in value):
                setattr(parent, name, [change(target) if each is target else each for each in value])
                return


class _Changed(SourceFileLoader):
    """Gives a module another code than its file has."""

    def __init__(self, name: str, path: str, tree: ast.Module) -> None:
        super().__init__(name, path)
        self._tree = tree

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._tree, self.path, "exec")


class _Finder(MetaPathFinder):
    """Finds the mutant in its module's place."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        self._name = f"rlhf_dist.{mutant.file.removesuffix('.py').replace('/', '.')}"

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        where = str(ROOT / "rlhf_dist" / self._mutant.file)
        return importlib.util.spec_from_file_location(
            fullname, where, loader=_Changed(fullname, where, self._mutant.tree)
        )


def caught(mutant: Mutant | None, tests: Sequence[str]) -> bool:
    """Whether tests fail, crash or do not end on a mutant, or as things are."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _tested(mutant, tests)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return status != 0


def _tested(mutant: Mutant | None, tests: Sequence[str]) -> int:
    """Pytest's exit code; in a fork."""
    import pytest
    from hypothesis import Phase, settings

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silent, stream)
    if mutant is not None:
        sys.meta_path.insert(0, _Finder(mutant))
    settings.register_profile(
        "mutants", deadline=None, phases=[Phase.explicit, Phase.generate], database=None, derandomize=True
    )
    chosen = [str(ROOT / "tests" / each) for each in tests]
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=mutants", *chosen]))


def tried(file: str, *, every: int = 1) -> list[dict[str, Any]]:
    """The mutants of a module, or one in `every`, and which survive."""
    if caught(None, TESTS[file]):
        raise SystemExit(f"{', '.join(TESTS[file])} fail though nothing is changed; expected them to pass")
    rows = []
    for number, mutant in enumerate(mutants_of(file)):
        if number % every == 0:
            found = caught(mutant, TESTS[file])
            rows.append({"file": file, "line": mutant.line, "what": mutant.what, "caught": "yes" if found else "NO"})
            if not found:
                print(f"SURVIVED: {file}:{mutant.line}: {mutant.what}", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Every module, one after the other."""
    from contract import arguments, publish

    options = arguments(__doc__ or "")
    # What every fork needs, imported once; nothing of ours, which each fork imports anew.
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import scipy.optimize  # noqa: F401
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT))
    os.chdir(tempfile.mkdtemp())
    rows = [row for file in TESTS for row in tried(file, every=20 if options.quick else 1)]
    survivors = [row for row in rows if row["caught"] == "NO"]
    figures = {
        "mutants": float(len(rows)),
        "survived": float(len(survivors)),
        "caught_share": 1 - len(survivors) / len(rows),
    }
    publish("mutants", figures, survivors, options.json)


if __name__ == "__main__":
    main()
