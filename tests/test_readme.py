"""The commands and code of README and docs/program.md, run as they stand there, but small."""

import contextlib
import io
import itertools
import json
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdjax.cli import main
from kdjax.data.download import Fetched
from kdjax.detection.storage import load_detector

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PROGRAM = (ROOT / "docs" / "program.md").read_text("utf-8")

# What makes each `run` a matter of seconds; everything else is as printed.
SMALL = [
    "--config.teacher.hidden=4",
    "--config.teacher.epochs=1",
    "--config.student.hidden=2",
    "--config.student.epochs=1",
    "--config.data.train_stride=400",
    "--config.data.stride=30",
    "--config.baselines=classifier",
    "--config.classifier.networks=2",
    "--config.classifier.steps=20",
]
# Rows of the file that are streamed; more of them show nothing more.
STREAMED = 150


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def set_up_commands() -> list[str]:
    return [line for line in README.splitlines() if line.startswith("python3 -m venv ")]


def verb_lines(text: str = PROGRAM) -> list[list[str]]:
    lines = [line for block in blocks("sh", text) for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("kdjax ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a checkout, with the user's file that the README speaks of."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "configs").symlink_to(ROOT / "configs")
    rng = np.random.default_rng(0)
    values = rng.random((24_000, 3))
    table = pd.DataFrame(values, columns=["pressure", "flow", "level"])
    times = pd.date_range("2026-01-01", periods=24_000, freq="min")
    table.insert(0, "time", times)
    table.to_csv(folder / "plant.csv", index=False)
    later = table.iloc[:3_000].assign(time=table["time"][:3_000] + pd.Timedelta("30D"))
    later.to_csv(folder / "recent.csv", index=False)
    (folder / "plants").mkdir()
    for place in range(2):  # machines of a fleet
        part = table.iloc[place * 3_000 : place * 3_000 + 3_000]
        part.to_csv(folder / "plants" / f"m{place}.csv", index=False)
    return folder


def run(command: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    small = SMALL if command[1] in ("run", "sweep", "fleet") else []
    given = {word.split("=")[0] for word in command}
    small = [flag for flag in small if flag.split("=")[0] not in given]
    output = io.StringIO()
    if "<" in command:
        words, (source, _, target) = command[:-4], command[-3:]
        with open(source, encoding="utf-8") as file:
            head = "".join(itertools.islice(file, STREAMED + 1))
        monkeypatch.setattr("sys.stdin", io.StringIO(head))
        with (
            open(target, "w", encoding="utf-8") as file,
            contextlib.redirect_stdout(file),
        ):
            assert main(words) == 0
        return ""
    with contextlib.redirect_stdout(output):
        assert main([*command, *small]) == 0
    return output.getvalue()


def test_set_up_is_two_commands_that_ci_runs() -> None:
    commands = set_up_commands()
    assert len(commands) == 2
    quickstart = commands[0].split(" && ")[-1].replace(".venv/bin/", "")
    assert shlex.split(quickstart) in verb_lines()
    assert commands[1].split(" && ")[-1].startswith(".venv/bin/pytest")
    assert "'^python3 -m venv '" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_every_verb_is_shown() -> None:
    assert [line[1] for line in verb_lines()] == [
        "run",
        "run",
        "score",
        "plot",
        "sweep",
        "fleet",
        "calibrate",
        "export",
        "stream",
        "serve",
        "fetch",
        "info",
    ]


@pytest.mark.slow
def test_commands_and_code_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    fetched: list[str] = []

    def fetch_smd(destination: str, **_: object) -> Fetched:
        fetched.append(destination)
        return Fetched((), ())

    monkeypatch.setattr("kdjax.data.download.fetch_smd", fetch_smd)
    served: list[object] = []
    serve = "kdjax.service.server.serve_until_signal"
    monkeypatch.setattr(serve, lambda app, _: served.extend(app.engines))
    printed = [run(line, monkeypatch) for line in verb_lines()]
    assert fetched == ["data/smd"] and served == ["plant"]
    assert "student 482601" in printed[-1]
    scores = pd.read_csv(folder / "scores.csv")
    assert len(scores) == 24_000
    assert {"score", "window_score", "alarm", "state"} < set(scores.columns)
    assert "Plotly" in (folder / "scores.html").read_text("utf-8")
    again = load_detector(folder / "runs" / "again")
    assert sorted(again.card["calibrated_again"]) == ["plant", "pooled"]
    catalogue = pd.read_parquet(folder / "fleets" / "plants" / "catalogue.parquet")
    assert catalogue["state"].tolist() == ["ready", "ready"]
    assert (folder / "plant.onnx").stat().st_size > 0
    answers = (folder / "answers.jsonl").read_text("utf-8").splitlines()
    answers = [json.loads(line) for line in answers]
    assert sum("event" not in answer for answer in answers) == STREAMED


@pytest.mark.slow
def test_the_front_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three commands of the README, and its code with fewer steps."""
    monkeypatch.chdir(folder)
    for line in verb_lines(README):
        short = [*line, "--config.classifier.steps=20"] if line[1] == "run" else line
        run(short, monkeypatch)
    assert (folder / "answers.jsonl").stat().st_size > 0
    (code,) = blocks("python")
    code = code.replace(
        '"threshold.budget"', '"classifier.steps": 50, "threshold.budget"'
    )
    (folder / "readme.py").write_text(code, encoding="utf-8")
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        pytest.warns(UserWarning, match="far from all other values"),
    ):
        runpy.run_path("readme.py")
    assert "events a day" in said.getvalue() and "severity" in said.getvalue()


@pytest.mark.parametrize("page", [README, PROGRAM], ids=["README", "program"])
def test_links_lead_somewhere(page: str) -> None:
    root = ROOT if page is README else ROOT / "docs"
    for target in re.findall(r"\]\(([^)#]+)\)", page):
        if "://" not in target:
            assert (root / target).exists(), target
