"""The rooms of the house: every module imports downwards only, and a package's `__init__` does no work."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the cellar up. What stands in one row may not import each other.
FLOORS = [
    ("option", "util"),
    ("models", "commands"),
    ("photographs",),
    ("dataset",),
    ("evaluation",),
    ("training",),
    ("inference",),
    ("searching", "exporting"),
    ("experiment",),
    ("main_nni", "predict", "prepare_data", "search", "export", "compare"),
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES = [
    path for room in FLOOR for path in (sorted((ROOT / room).rglob("*.py")) or [ROOT / f"{room}.py"])
]  # fmt: skip


def imported(path):
    """The rooms that a module imports from, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        yield from ((name.split(".")[0], node.lineno) for name in names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_downwards(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name, line in imported(path):
        if name in FLOOR and name != room:
            assert FLOOR[name] < FLOOR[room], f"{path}:{line}: {room} imports {name}"


def test_every_room_has_its_floor():
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {p.stem for p in ROOT.glob("*.py")}
    assert rooms - {"benchmarks", "tests"} == set(FLOOR)


def test_the_search_knows_nni_and_optuna_and_nobody_else():
    for path in MODULES:
        rooms = {name for name, _ in imported(path)}
        assert "nni" not in rooms or path.name == "trial.py"
        assert "optuna" not in rooms or path.parent.name == "searching" or path.name == "search.py"


@pytest.mark.parametrize("room", [room for room in FLOOR if (ROOT / room / "__init__.py").is_file()])
def test_a_package_does_no_work_when_it_is_imported(room):
    """Imports, names and definitions; nothing that runs."""
    for node in ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8")).body:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert text or isinstance(node, (ast.Import, ast.ImportFrom, ast.Assign, ast.FunctionDef)), room
