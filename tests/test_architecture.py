"""The rooms of the house: every module imports downwards only, and a package's `__init__` does no work."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the ground up. Rooms on one floor may not import each other.
FLOORS = [
    ("iaa", "iaa.errors", "iaa.suggestions"),
    ("iaa.loss_terms", "iaa.option_row"),
    ("option", "util"),
    ("models", "iaa.runtime"),
    ("iaa.options",),
    ("iaa.photographs",),
    ("dataset",),
    ("iaa.evaluation",),
    ("iaa.networks",),
    ("iaa.training",),
    ("iaa.scoring",),
    ("iaa.reports",),
    ("iaa.searching", "iaa.exporting"),
    ("iaa.experiment", "iaa.prediction"),
    ("main_nni", "predict", "prepare_data", "search", "export", "compare", "hubconf"),
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES = [*ROOT.glob("*.py"), *(ROOT / "models").rglob("*.py"), *(ROOT / "iaa").rglob("*.py")]
PACKAGES = [path for path in MODULES if path.name == "__init__.py"]


def name_module(path, root=ROOT):
    """`iaa.scoring.table` of a path below `root`; a package's `__init__` has the package's name."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def find_room(name):
    """The room of a module or of a name in it: the first two parts of a name in `iaa`, else the first; None if foreign."""
    parts = name.split(".")
    room = ".".join(parts[: 2 if parts[0] == "iaa" else 1])
    return room if room in FLOOR else None


def find_imports(path, root=ROOT):
    """The full names that a module imports, relative ones too, wherever in the file; with their lines."""
    package = name_module(path, root).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = [*base, *([node.module] if node.module else [])]
            yield from ((".".join([*base, alias.name]), node.lineno) for alias in node.names)


def find_upward_imports(path, root=ROOT):
    room = find_room(name_module(path, root))
    for name, line in find_imports(path, root):
        imported = find_room(name)
        if imported not in (None, room) and FLOOR[imported] >= FLOOR[room]:
            yield f"{path}:{line}: {room} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=name_module)
def test_imports_run_downwards(path):
    assert not list(find_upward_imports(path))


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("iaa/photographs", "from iaa.scoring.table import Table"),
        ("iaa/photographs", "from iaa.scoring import table"),
        ("iaa/photographs", "from iaa import scoring"),
        ("iaa/photographs", "from ..scoring import table"),
        ("iaa/photographs", "import iaa.scoring.table"),
        ("iaa/photographs", "def late():\n    from dataset import Transform"),
        ("iaa/searching", "from ..exporting.card import write"),
        ("models", "from iaa.photographs import decode"),
        ("iaa", "from .training import engine"),
    ],
)
def test_an_upward_import_is_found(tmp_path, room, line):
    path = tmp_path / room / ("__init__.py" if room == "iaa" else "planted.py")
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert len(list(find_upward_imports(path, tmp_path))) == 1


def test_every_room_has_its_floor():
    assert {find_room(name_module(path)) for path in MODULES} == set(FLOOR)


def test_the_search_knows_nni_and_optuna_and_nobody_else():
    for path in MODULES:
        packages = {name.split(".")[0] for name, _ in find_imports(path)}
        assert "nni" not in packages or path.name == "nni_trial.py"
        assert "optuna" not in packages or path.parent.name == "searching" or path.name == "search.py"


@pytest.mark.parametrize("path", PACKAGES, ids=name_module)
def test_a_package_does_no_work_when_it_is_imported(path):
    """Imports, names and definitions; nothing that runs."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert is_text or isinstance(node, (ast.Import, ast.ImportFrom, ast.Assign, ast.FunctionDef)), path


def test_no_pickle_is_trusted():
    texts = [*MODULES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("docs/*.md")]
    trusting = re.compile(r"weights_only\s*=\s*" + "False")
    assert [path for path in texts if trusting.search(path.read_text(encoding="utf-8"))] == []
    loads = [
        path
        for path in MODULES
        if re.search(r"torch\.load\((?!.*weights_only=True)", path.read_text("utf-8"))
    ]
    assert loads == []
