"""`benchmarks/faults.py`: the list of faults fits the tree; found and survived ones."""

import importlib
import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def faults(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("faults")


def test_each_fault_stands_on_one_line_and_has_tests(faults):
    listed = faults.read_faults(faults.LIST.read_text("utf-8"))
    assert len(listed) >= 110
    assert len({(fault.old, fault.new) for fault in listed}) == len(listed)
    assert all(fault.old != fault.new for fault in listed)
    assert faults.check(listed, ROOT) == []


def test_a_list_that_is_not_in_threes_is_refused(faults):
    with pytest.raises(ValueError, match="fault 1"):
        faults.read_faults("- a\n? b\n+ c\n")


@pytest.fixture
def tree(faults, tmp_path, monkeypatch):
    """A small checkout with two faults, of which one is found."""
    (tmp_path / "kdjax").mkdir()
    (tmp_path / "tests").mkdir()
    code = "def double(x):\n    return 2 * x\n\n\ndef half(x):\n    return x / 2\n"
    (tmp_path / "kdjax" / "sums.py").write_text(code)
    test = (
        "from kdjax.sums import double\n\n\ndef test_it():\n    assert double(2) == 4\n"
    )
    (tmp_path / "tests" / "test_sums.py").write_text(test)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    text = (
        "- return 2 * x\n+ return 3 * x\n? sums\n"
        "- return x / 2\n+ return x / 3\n? sums\n"
        "- return y\n+ return x\n? sums\n"
    )
    (tmp_path / "faults.txt").write_text(text)
    monkeypatch.setattr(faults, "ROOT", tmp_path)
    monkeypatch.setattr(faults, "LIST", tmp_path / "faults.txt")
    return tmp_path


@pytest.mark.slow  # runs pytest in processes of its own
def test_found_survived_and_missing_faults(faults, tree, capsys):
    output = tree / "out.jsonl"
    faults.main([f"--output={output}", "--shard=0/2"])
    faults.main([f"--output={output}"])
    reports = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [(r["number"], r["outcome"]) for r in reports] == [
        (1, "found"),
        (3, "missing"),
        (2, "survived"),
    ]
    assert reports[0]["file"] == "kdjax/sums.py" and reports[0]["line"] == 2
    assert "test_it" in reports[0]["detail"]
    assert "1 of 3 found" in capsys.readouterr().out
    assert "2 * x" in (tree / "kdjax" / "sums.py").read_text()
    with pytest.raises(SystemExit, match="1"):
        faults.main(["--check"])
    assert "3 faults, 1 problems" in capsys.readouterr().out
