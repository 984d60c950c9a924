"""What surrounds the code: workflows, hooks, citation, contributor's guide."""

import configparser
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest
import yaml

from kdjax.metrics import UndefinedMetricWarning, points
from kdjax.models import baselines

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text("utf-8")) for path in FOLDER.iterdir()
}
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def commands(workflow, job):
    """The commands that a job runs."""
    steps = WORKFLOWS[workflow]["jobs"][job]["steps"]
    return [step["run"] for step in steps if "run" in step]


def test_tests_run_on_every_python_with_the_oldest_and_the_newest_jax():
    matrix = WORKFLOWS["tests"]["jobs"]["tests"]["strategy"]["matrix"]
    classifiers = SETUP["metadata"]["classifiers"]
    assert matrix["python"] == re.findall(r"Python :: (3\.\d+)", classifiers)
    required = SETUP["options"]["install_requires"].split("\n")
    (jax,) = (line for line in required if line.startswith("jax "))
    assert matrix["jax"] == [jax.replace(" >= ", "==") + ".0", "jax"]
    bounds = [line for line in required if line]
    assert all(">=" in line for line in bounds)  # so that the oldest is known
    (tests,) = (
        line for line in commands("tests", "oldest") if line.startswith("pytest")
    )
    for name in re.findall(r"tests/\w+\.py", tests):
        assert (ROOT / name).exists()


def test_the_lanes_of_ci_run_at_night():
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    assert "bash .ci/run" in commands("nightly", "everything")
    slow = next(c for c in commands("nightly", "slow") if c.startswith("pytest"))
    assert slow in ci and "schedule" in WORKFLOWS["nightly"][True]


def test_a_release_needs_its_version_and_has_no_token():
    release = WORKFLOWS["release"]
    assert release[True] == {"push": {"tags": ["v*"]}}
    jobs = release["jobs"]
    assert jobs["package"]["needs"] == "version"
    assert jobs["publish"]["needs"] == "package"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in (FOLDER / "release.yml").read_text("utf-8")


@pytest.mark.parametrize(
    ("tag", "citation", "code"),
    [
        ("v1.2.3", "1.2.3", 0),
        ("v1.2.4", "1.2.3", 1),
        ("1.2.3", "1.2.3", 1),
        ("v1.2.3", "1.2.2", 1),
    ],
)
def test_a_tag_must_be_the_version(tmp_path, tag, citation, code):
    (tmp_path / "setup.cfg").write_text("[metadata]\nname = kdjax\nversion = 1.2.3\n")
    (tmp_path / "CITATION.cff").write_text(f"version: {citation}\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (2026-12-01)\n")
    (script,) = commands("release", "version")
    # As GitHub runs a step: a failing line ends it.
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        env={"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == code


def test_the_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == SETUP["metadata"]["version"]
    assert citation["license"] == SETUP["metadata"]["license"]


def test_hooks_are_the_static_checks():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))[
        "repos"
    ]
    hooks = {hook["entry"].removesuffix(" --fix") for hook in local["hooks"]}
    static = {
        c.removesuffix(" .").replace(" --check", "")
        for c in commands("tests", "static")
    }
    assert hooks == {"ruff format", "ruff check", "mypy", "codespell"} <= static


def test_what_the_guide_names_exists():
    folders = "kdjax|tests|docs|configs|examples|benchmarks"
    named = re.findall(rf"`((?:{folders})/[\w./]*)`", CONTRIBUTING)
    named += re.findall(r"\]\(([^)#:]+)\)", CONTRIBUTING)
    assert [name for name in named if not (ROOT / name).exists()] == [
        "kdjax/commands/head.py"  # the verb of the example
    ]
    extras = re.findall(r"\[([\w,]+)\]\"", CONTRIBUTING)
    assert {e for found in extras for e in found.split(",")} == {"test", "dev"}


def test_the_model_the_metric_and_the_verb_of_the_guide_work(tmp_path, capsys):
    code = re.findall(r"```python\n(.*?)```", CONTRIBUTING, flags=re.DOTALL)
    model, metric, verb = map(textwrap.dedent, code)
    spaces = [dict(vars(module)) for module in (baselines, points)] + [{}]
    for text, space in zip((model, metric, verb), spaces, strict=True):
        exec(text, space)  # noqa: S102 - as a contributor would
    windows = np.random.default_rng(0).normal(size=(2, 5, 3))
    np.testing.assert_allclose(
        spaces[0]["window_median"]({}, windows),
        np.broadcast_to(np.median(windows, axis=1, keepdims=True), (2, 5, 3)),
        rtol=1e-6,
    )
    assert spaces[1]["false_alarm_rate"]([0, 0, 0, 1], [1, 0, 0, 0]) == 1 / 3
    with pytest.warns(UndefinedMetricWarning):
        assert np.isnan(spaces[1]["false_alarm_rate"]([1], [0]))
    (tmp_path / "plant.csv").write_text("a,b\n1,2\n3,4\n")
    (flag,) = spaces[2]["FLAGS"]["Output"]
    flags = types.SimpleNamespace(**{flag.name: 1})
    spaces[2]["main"]([str(tmp_path / "plant.csv")], flags)
    assert capsys.readouterr().out == "plant a b\n[[1. 2.]]\n"


@pytest.mark.integration
def test_forms_and_workflows_follow_their_schemas():
    lines = [c for c in commands("tests", "static") if c.startswith("check-jsonschema")]
    assert len(lines) == 4
    for line in lines:
        done = subprocess.run(
            [
                "bash",
                "-c",
                f"{shlex.quote(sys.executable)} -m {line.replace('-', '_', 1)}",
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.integration
def test_no_typos():
    if not (program := shutil.which("codespell", path=Path(sys.executable).parent)):
        pytest.skip("needs codespell")
    done = subprocess.run(
        [program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
