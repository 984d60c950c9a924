"""What a run records of its surroundings: versions, devices, extras, the commit."""

import json
import subprocess
from pathlib import Path

import numpy as np

from kdjax.io import environment


def test_environment_tells_versions_devices_and_parts():
    facts = environment.describe_environment()
    assert set(facts) == {
        "python",
        "versions",
        "device",
        "devices",
        "optional",
        "commit",
    }
    assert set(facts["versions"]) == set(environment.PACKAGES)
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["device"] == facts["devices"][0]
    assert set(facts["optional"]) == {"onnx", "bench", "sweep", "large", "serve"}
    assert json.loads(json.dumps(facts)) == facts


def test_an_extra_is_there_when_all_its_modules_are(monkeypatch):
    monkeypatch.setattr(
        environment, "EXTRAS", {"there": ("json",), "half": ("json", "no_such_module")}
    )
    optional = environment.describe_environment()["optional"]
    assert optional == {"there": True, "half": False}


def test_a_package_that_is_not_there_has_no_version(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package"))
    assert environment.describe_environment()["versions"] == {
        "numpy": np.__version__, "no-such-package": None,
    }  # fmt: skip


def test_names_of_devices():
    class Device:
        def __init__(self, platform, kind):
            self.platform, self.device_kind = platform, kind

    assert environment.device_name(Device("cpu", "cpu")) == "cpu"
    assert environment.device_name(Device("gpu", "NVIDIA H100")) == "gpu (NVIDIA H100)"


def test_the_commit_is_that_of_the_checkout(monkeypatch, tmp_path):
    commit, top = environment.git_commit(), Path(__file__).parent.parent
    assert (commit is None) == (not (top / ".git").exists())
    assert commit is None or len(commit.split("-")[0]) == 40
    monkeypatch.setattr(
        environment, "__file__", str(tmp_path / "kdjax" / "io" / "e.py")
    )
    assert environment.git_commit() is None
    (tmp_path / ".git").mkdir()  # no repository: git says so, and there is no commit
    assert environment.git_commit() is None

    # Installed below somebody else's checkout: that commit is not kdjax's.
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    assert len(environment.git_commit()) == 40
    below = tmp_path / "venv" / "kdjax" / "io" / "e.py"
    monkeypatch.setattr(environment, "__file__", str(below))
    below.parent.mkdir(parents=True)
    assert environment.git_commit() is None
    monkeypatch.setattr(
        environment, "__file__", str(tmp_path / "kdjax" / "io" / "e.py")
    )

    def absent(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(environment.subprocess, "run", absent)
    assert environment.git_commit() is None
