"""Walls of the house, found by reading imports; and what may stay unimported."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import kdjax

PACKAGE = Path(kdjax.__file__).parent
TOP = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = [TOP / "launch.py", *sorted((TOP / "configs").glob("*.py"))]

# Rooms from the first to the last; each imports only from those above it.
ROOMS = (
    ("errors", "stopping"),
    ("artifacts",),
    ("fields",),
    ("config",),
    ("data",),
    ("hosts",),
    ("devices",),
    ("models",),
    ("training",),
    ("detection",),
    ("evaluation",),
    ("export",),
    (
        "workdir",
        "progress",
        "environment",
        "realised",
        "costs",
        "assembly",
        "scoring",
        "lessons",
        "rules",
    ),
    ("trainings", "baselines", "scorers"),
    ("fitting",),
    ("populations",),
    ("judgement", "streaming", "distillation", "fleet"),
    ("inspection", "parts", "recalibration", "renewal", "findings"),
    ("outcome",),
    ("pipeline",),
    ("sweep", "estimator", "bench"),
    ("verbs",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}

# Who may import a library: modules or rooms, as they are called below.
ONLY = {
    "absl": {"cli"},
    "ml_collections": {"config", "cli"},
    "flax.linen": {"models"},
    "flax.struct": {"training"},
    "orbax": {"training.checkpoints"},
    "optax": {"training"},
    "grain": {"training"},
    "optuna": {"sweep"},
    "onnx": {"export", "bench"},
    "onnxruntime": {"export", "bench"},
    "torch": {"bench"},
    "tensorflow": set(),
    "flax.training": set(),
}
CONFIG_READERS = {
    "cli",
    "workdir",
    "recalibration",
    "pipeline",
    "sweep",
    "estimator",
    "bench",
}
BEFORE_JAX = ("errors", "artifacts", "config", "data", "evaluation", "workdir", "cli")


def name_of(path):
    """Such as `data.windows`; the package itself is ``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def tree(path):
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(node, *, top_level=False):
    """Dotted names that are imported, `from a import b` as `a.b`."""
    if top_level:
        nodes = [child for child in node.body if not isinstance(child, ast.If)]
    else:
        nodes = list(ast.walk(node))
    for child in nodes:
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)


def within(name, prefixes):
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


MODULES = {name_of(path): tree(path) for path in FILES}
each_module = pytest.mark.parametrize("name", MODULES)


def test_the_walls_are_looked_for_in_all_files():
    assert len(MODULES) == len(FILES) > 30
    known = {name.split(".")[0] for name in MODULES if name}
    assert known <= set(LEVEL), "a room without a place in ROOMS"


@each_module
def test_libraries_stay_where_they_belong(name):
    for imported in imports(MODULES[name]):
        for library, users in ONLY.items():
            if within(imported, [library]):
                assert within(name, users), f"{name} imports {imported}"


def test_the_walls_find_what_they_look_for():
    """The libraries are in use where they may be, so a typo above would show."""
    users = {library: set() for library in ONLY}
    for name, module in MODULES.items():
        for imported in imports(module):
            for library in ONLY:
                if within(imported, [library]):
                    users[library].add(name)
    assert users["absl"] == {"cli"} and users["ml_collections"] == {"config", "cli"}
    assert users["orbax"] == {"training.checkpoints"}
    assert users["flax.linen"] and users["flax.struct"] and users["optax"]


def test_flax_is_imported_by_its_walled_parts_only():
    parts = {
        ".".join(imported.split(".")[:2])
        for module in MODULES.values()
        for imported in imports(module)
        if within(imported, ["flax"])
    }
    assert parts <= {"flax.linen", "flax.struct"}


@each_module
def test_rooms_import_only_from_rooms_above(name):
    if not name:
        return  # the package's face, which names them all
    room = name.split(".")[0]
    for imported in imports(MODULES[name]):
        if not within(imported, ["kdjax"]):
            continue
        parts = imported.split(".")
        if len(parts) == 1:
            continue
        other = parts[1]
        assert other in LEVEL, f"{name} imports {imported}"
        above = LEVEL[other] < LEVEL[room]
        assert other == room or above, f"{name} imports {imported}"


@each_module
def test_config_is_read_by_those_who_run_things(name):
    if not name or name == "config":
        return
    uses = [i for i in imports(MODULES[name]) if within(i, ["kdjax.config"])]
    assert not uses or within(name, CONFIG_READERS), f"{name} imports {uses}"


@each_module
def test_jax_stays_out_of_data_and_evaluation(name):
    if within(name, BEFORE_JAX):
        found = [
            i
            for i in imports(MODULES[name])
            if within(i, ["jax", "flax", "optax", "orbax", "kdjax.models"])
        ]
        assert not found, f"{name} imports {found}"


@pytest.mark.parametrize("path", FILES + SCRIPTS, ids=lambda path: path.name)
def test_no_relative_or_star_imports_and_no_future(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert [alias.name for alias in node.names] != ["*"], f"line {node.lineno}"
            assert node.module != "__future__"


UNSAFE = {"pickle", "cPickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_METHODS = {("yaml", "load"), ("os", "system"), ("np", "genfromtxt")}


@pytest.mark.parametrize("path", FILES + SCRIPTS, ids=lambda path: path.name)
def test_nothing_runs_code_from_files(path):
    module = tree(path)
    assert not {i.split(".")[0] for i in imports(module)} & UNSAFE
    for node in ast.walk(module):
        if not isinstance(node, ast.Call):
            continue
        where = f"{path.name}, line {node.lineno}"
        if isinstance(node.func, ast.Name):
            assert node.func.id not in UNSAFE_CALLS, where
        if isinstance(node.func, ast.Attribute) and isinstance(
            node.func.value, ast.Name
        ):
            call = (node.func.value.id, node.func.attr)
            assert call not in UNSAFE_METHODS, where
        for keyword in node.keywords:
            if keyword.arg in ("allow_pickle", "shell"):
                value = keyword.value
                assert isinstance(value, ast.Constant) and value.value is False, where


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_stay_short_and_say_what_they_do(path):
    assert len(path.read_text("utf-8").splitlines()) <= 400
    assert ast.get_docstring(tree(path))


def functions(module):
    """Public functions, classes and methods of a module's tree."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for below in node.body:
                    if isinstance(below, ast.FunctionDef) and below.name[0] != "_":
                        yield f"{node.name}.{below.name}", below


@each_module
def test_whatever_is_public_has_a_docstring(name):
    # linen calls `setup` itself.
    missing = [
        function
        for function, node in functions(MODULES[name])
        if not ast.get_docstring(node) and not function.endswith(".setup")
    ]
    assert not missing


# The face of the package.


def test_every_public_name_resolves():
    assert "run" in kdjax.__all__ and "load_detector" in kdjax.__all__
    for name in kdjax.__all__:
        value = getattr(kdjax, name)
        home = importlib.import_module(kdjax._MODULES[name])
        assert value is getattr(home, name)
        assert inspect.getdoc(value)
    assert dir(kdjax) == sorted(kdjax.__all__)
    assert len(set(kdjax.__all__)) == len(kdjax.__all__)


def test_type_checkers_see_the_same_names():
    (guarded,) = (node for node in MODULES[""].body if isinstance(node, ast.If))
    seen = {i.split(".")[-1] for i in imports(guarded)}
    assert seen == set(kdjax.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(
        AttributeError, match="module 'kdjax' has no attribute 'nothing'"
    ):
        kdjax.nothing  # noqa: B018
    with pytest.raises(ImportError):
        from kdjax import nothing  # noqa: F401


def test_every_module_can_be_imported():
    for module in pkgutil.walk_packages(kdjax.__path__, "kdjax."):
        assert importlib.import_module(module.name).__doc__


# Imports that cost nothing.


def loaded(code):
    """Modules that a fresh interpreter has loaded after some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    # What the code itself printed stands above.
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import kdjax", {"jax", "numpy", "pandas", "ml_collections", "absl"}),
        ("import kdjax; kdjax.DataError", {"jax", "numpy"}),
        ("import kdjax.data", {"jax", "sklearn", "matplotlib", "pooch"}),
        ("import kdjax.metrics", {"jax", "matplotlib", "sklearn"}),
        ("import kdjax.evaluation.report", {"jax"}),
        ("import kdjax.cli", {"jax", "pandas", "matplotlib", "sklearn"}),
        ("import kdjax.experiment.workdir", {"jax"}),
    ],
)
def test_these_imports_leave_jax_alone(code, absent):
    modules = loaded(code)
    assert "kdjax" in modules
    assert not absent & modules


def test_help_leaves_jax_alone():
    code = "from kdjax.cli import main; main(['kdjax', '--help'])"
    modules = loaded(code)
    assert "kdjax.commands.verbs" in modules
    assert not {"jax", "pandas", "matplotlib", "sklearn"} & modules
