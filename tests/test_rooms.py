"""Who may import whom: every room stands on a floor, and arrows point down. And: what is imported is there."""

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rlhf_dist"
FLOORS = (
    {"cli"},
    {"feedback_cli", "methods_cli", "plan_cli"},
    {"chaos"},
    {"stages", "doctor", "ending", "methods_view"},
    {"controller"},
    {"gathering"},
    {"parts"},
    {"learner", "rollout"},
    {"planning"},
    {"scoring", "run_folder"},
    {"feedback"},
    {"evaluation"},
    {"tasks", "models"},
    {"store", "data", "verifiers"},
    {"telemetry"},
    {"cluster"},
    {"steering"},
    {"config", "checkpoint"},
    {"algorithms", "records", "files", "imports", "progress", "stopping"},
    {"errors"},
    {"secrets"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    return module.split(".")[1]


def imports_of(file: Path) -> list[tuple[int, str, str]]:
    """Line, module and name of everything of ours that a file imports, at its top or inside functions."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "rlhf_dist":
            found += [(node.lineno, node.module, alias.name) for alias in node.names]
    return found


def modules() -> list[Path]:
    return sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


def test_every_room_has_a_floor() -> None:
    rooms = {path.stem if path.suffix == ".py" else path.name for path in PACKAGE.iterdir() if path.name[0] != "_"}
    assert rooms - {"configs"} == FLOOR.keys()


def test_imports_point_down() -> None:
    wrong = []
    for file in modules():
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for line, module, name in imports_of(file):
            other = room_of(f"{module}.{name}")
            if other != own and FLOOR[other] <= FLOOR[own]:
                wrong.append(f"{file.relative_to(ROOT)}:{line}: {own} imports {other}")
    assert wrong == []


@pytest.mark.parametrize("room", ["algorithms", "store/schema.py", "records.py"])
def test_what_everything_stands_on_stands_on_nothing_of_ours(room: str) -> None:
    allowed = {"rlhf_dist.records", "rlhf_dist.errors"}
    files = [*(PACKAGE / room).rglob("*.py")] if (PACKAGE / room).is_dir() else [PACKAGE / room]
    found = {module for file in files for _, module, _ in imports_of(file)}
    assert {module for module in found - allowed if not module.startswith("rlhf_dist.algorithms")} == set()


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other at their tops, in a circle."""
    found, done = [], set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append(path[path.index(module) :])
        elif module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, [*path, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {}
    for file in modules():
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        top = ast.Module([node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ImportFrom)], [])
        graph[name] = {node.module for node in top.body if node.module and node.module.startswith("rlhf_dist")} - {name}
    assert cycles(graph) == []
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c"]], "one would be seen"


@pytest.mark.parametrize("folder", ["benchmarks", "tests", "rlhf_dist"])
def test_what_is_imported_is_there_also_inside_functions(folder: str) -> None:
    """Benchmarks run rarely, and most of their imports stand inside functions."""
    missing = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        for line, module, name in imports_of(file):
            if module.endswith("vllm_weight_engine"):
                continue  # it imports vLLM, for half a minute; tests/integration does, where it is used
            if not hasattr(importlib.import_module(module), name) and not _is_module(f"{module}.{name}"):
                missing.append(f"{file.relative_to(ROOT)}:{line}: {module} has no {name}")
    assert missing == []


def _is_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def classes() -> list[tuple[str, str, ast.ClassDef]]:
    """File, name and body of every class of ours."""
    return [
        (str(file.relative_to(ROOT)), node.name, node)
        for file in modules()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
    ]


def test_one_name_is_one_class() -> None:
    homes: dict[str, set[str]] = {}
    for file, name, _ in classes():
        homes.setdefault(name, set()).add(file)
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def assigned(function: ast.AST) -> set[str]:
    """Attributes of `self` that a function sets."""
    targets = [
        node for node in ast.walk(function) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    ]
    return {node.attr for node in targets if isinstance(node.value, ast.Name) and node.value.id == "self"}


def test_attributes_are_born_in_init() -> None:
    """One that another method makes is not there when that method was not called: an AttributeError instead of a sentence."""
    late = {}
    for file, name, body in classes():
        functions = [node for node in body.body if isinstance(node, ast.FunctionDef)]
        fields = [
            node.target for node in body.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        ]
        born = {field.id for field in fields}.union(*(assigned(node) for node in functions if node.name == "__init__"))
        if found := set().union(*(assigned(node) for node in functions)) - born:
            late[f"{file}: {name}"] = sorted(found)
    assert late == {}
