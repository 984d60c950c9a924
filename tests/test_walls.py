"""The structure of the package: who may import what, sizes, and imports that stay cheap."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import kdjax

PACKAGE = Path(kdjax.__file__).parent
TOP = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = [TOP / "launch.py", *sorted((TOP / "configs").glob("*.py"))]

# Rooms in their order of dependence: each imports only from those before it.
ROOMS = (
    "errors",
    "io",
    "notify",
    "metrics",
    "data",
    "losses",
    "models",
    "training",
    "detection",
    "evaluation",
    "export",
    "scoring",
    "config",
    "experiment",
    "estimator",
    "service",
    "commands",
    "cli",
)
TOP_MODULES = {"errors", "config", "losses", "estimator", "cli"}
MOST_LAYERS = 11
MOST_MODULES = 142
MOST_LINES = 40_687  # the aim is 27,000 with a service and fleets

# Who may import a library.
ONLY = {
    "absl": {"cli", "commands"},
    "ml_collections": {"config", "cli", "commands"},
    "flax.linen": {"models"},
    "flax.struct": {"training"},
    "orbax": {"training.checkpoints"},
    "optax": {"training"},
    "grain": {"training"},
    "optuna": {"experiment.sweeps"},
    "plotly": {"evaluation", "experiment.sweeps", "estimator"},  # its type there
    "jinja2": {"evaluation", "experiment.sweeps"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "starlette": {"service"},
    "prometheus_client": {"service"},
    "uvicorn": {"service"},
    "paho": {"notify"},
    "confluent_kafka": {"notify"},
    "asyncua": {"service"},
    "ray": {"io.executors"},
    "s3fs": {"io.stores"},
    "torch": set(),
    "tensorflow": set(),
    "flax.training": set(),
    "flax.nnx": set(),
}
USED_LIBRARIES = {"absl", "ml_collections", "flax.linen", "orbax", "optax", "onnx"}
CONFIG_READERS = {"cli", "commands", "experiment", "estimator"}
WITHOUT_SETTINGS = set(ROOMS) - CONFIG_READERS - {"config"}
WITHOUT_JAX = {"errors", "config", "io", "metrics", "data", "cli"}

UNSAFE_MODULES = {"pickle", "cPickle", "joblib", "dill", "cloudpickle", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_METHODS = {("yaml", "load"), ("os", "system"), ("np", "genfromtxt")}


def name_of(path):
    """Such as `data.windowing`; the package itself is ``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def tree(path):
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(node):
    """Dotted names that are imported, `from a import b` as `a.b`."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)


def within(name, prefixes):
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


MODULES = {name_of(path): tree(path) for path in FILES}
HOME_OF = {n: home for home, names in kdjax.HOMES.items() for n in names.split()}


def room_edges():
    """(importing module, imported room) of all imports between rooms."""
    for name, module in MODULES.items():
        room = name.split(".")[0]
        for imported in imports(module):
            parts = imported.split(".")
            if name and parts[0] == "kdjax" and len(parts) > 1 and parts[1] != room:
                yield name, parts[1]


def test_libraries_stay_where_they_belong():
    found = [
        f"{name} imports {imported}"
        for name, module in MODULES.items()
        for imported in imports(module)
        for library, users in ONLY.items()
        if within(imported, [library]) and not within(name, users)
    ]
    assert not found
    used = {
        library
        for module in MODULES.values()
        for imported in imports(module)
        for library in ONLY
        if within(imported, [library])
    }
    assert used >= USED_LIBRARIES  # a typo above would show


def test_rooms_import_only_from_rooms_before_them():
    level = {room: place for place, room in enumerate(ROOMS)}
    assert {name.split(".")[0] for name in MODULES if name} == set(ROOMS)
    upwards = [
        f"{name} imports {room}"
        for name, room in room_edges()
        if level[room] >= level[name.split(".")[0]]
    ]
    assert not upwards


def test_the_longest_chain_of_imports_between_rooms():
    below = {room: set() for room in ROOMS}
    for name, room in room_edges():
        below[name.split(".")[0]].add(room)
    layers = {}
    for room in ROOMS:
        layers[room] = 1 + max((layers[other] for other in below[room]), default=0)
    assert max(layers.values()) <= MOST_LAYERS, layers


def test_the_size_of_the_package():
    modules = [path for path in FILES if path.name != "__init__.py"]
    at_the_top = {path.stem for path in modules if path.parent == PACKAGE}
    assert at_the_top == TOP_MODULES
    assert len(modules) <= MOST_MODULES
    lines = sum(len(path.read_text("utf-8").splitlines()) for path in FILES)
    assert lines <= MOST_LINES


def test_settings_stop_at_the_edge():
    """Below `experiment` no function takes the settings or reads the config."""
    found = []
    for name, module in MODULES.items():
        if not within(name, WITHOUT_SETTINGS):
            continue
        found += [i for i in imports(module) if within(i, ["kdjax.config"])]
        for node in ast.walk(module):
            if isinstance(node, ast.arg) and node.arg in ("settings", "config"):
                found.append(f"{name}, line {node.lineno}: parameter {node.arg}")
            if isinstance(node, ast.Name) and node.id == "settings":
                found.append(f"{name}, line {node.lineno}: {node.id}")
    assert not found


def test_jax_stays_out_of_data_and_metrics():
    heavy = ["jax", "flax", "optax", "orbax", "kdjax.models"]
    found = []
    for name, module in MODULES.items():
        if within(name, WITHOUT_JAX):
            top = [n for n in module.body if isinstance(n, ast.Import | ast.ImportFrom)]
            found += [
                f"{name} imports {i}"
                for node in top
                for i in imports(node)
                if within(i, heavy)
            ]
    assert not found


def test_no_relative_or_star_imports_and_no_future():
    for path in FILES + SCRIPTS:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom):
                where = f"{path}, line {node.lineno}"
                assert node.level == 0, where
                assert [alias.name for alias in node.names] != ["*"], where
                assert node.module != "__future__", where


def test_nothing_runs_code_from_files():
    for path in FILES + SCRIPTS:
        module = tree(path)
        assert not {i.split(".")[0] for i in imports(module)} & UNSAFE_MODULES, path
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
                    assert isinstance(value, ast.Constant), where
                    assert value.value is False, where


def public(module):
    """Public functions, classes and methods of a module's tree."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for below in node.body:
                    if isinstance(below, ast.FunctionDef) and below.name[0] != "_":
                        yield f"{node.name}.{below.name}", below


def test_modules_and_public_names_have_docstrings():
    assert all(ast.get_docstring(module) for module in MODULES.values())
    # linen calls `setup` itself.
    missing = [
        f"{name}.{function}"
        for name, module in MODULES.items()
        for function, node in public(module)
        if not ast.get_docstring(node) and not function.endswith(".setup")
    ]
    assert not missing


def test_no_function_shares_its_name_with_a_module_of_its_room():
    """A package can't hold both under one name."""
    modules = {tuple(name.rsplit(".", 1)) for name in MODULES if "." in name}
    shared = [
        f"{name}.{node.name}"
        for name, module in MODULES.items()
        for node in module.body
        if isinstance(node, ast.FunctionDef)
        and "." in name
        and (name.rsplit(".", 1)[0], node.name) in modules
    ]
    assert not shared


# The public names of the package.


def test_every_public_name_resolves():
    assert "run" in kdjax.__all__ and "load_detector" in kdjax.__all__
    for name in kdjax.__all__:
        value = getattr(kdjax, name)
        home = importlib.import_module(HOME_OF[name])
        assert value is getattr(home, name)
        assert inspect.getdoc(value)
    assert dir(kdjax) == sorted(kdjax.__all__)
    for room in ("models", "training", "detection", "export", "experiment"):
        own = {n for n, home in HOME_OF.items() if home.split(".")[1] == room}
        assert set(importlib.import_module(f"kdjax.{room}").__all__) == own
    assert len(set(kdjax.__all__)) == len(kdjax.__all__)


def test_type_checkers_see_the_same_names():
    (guarded,) = (node for node in MODULES[""].body if isinstance(node, ast.If))
    seen = {i.split(".")[-1] for i in imports(guarded)}
    assert seen == {*kdjax.__all__, "metrics"}


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


# Imports that stay cheap.


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        (
            "import kdjax; kdjax.DataError",
            {"jax", "numpy", "pandas", "ml_collections", "absl"},
        ),
        (
            "import kdjax.data, kdjax.metrics",
            {"jax", "sklearn", "matplotlib", "plotly", "pooch"},
        ),
        (
            "from kdjax.cli import main; main(['kdjax', '--help'])",
            {"jax", "pandas", "matplotlib", "plotly", "sklearn"},
        ),
    ],
    ids=["package", "data", "help"],
)
def test_imports_that_leave_heavy_libraries_alone(code, absent):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    modules = set(done.stdout.splitlines()[-1].split())
    assert "kdjax" in modules
    assert not absent & modules
