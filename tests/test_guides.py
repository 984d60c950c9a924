"""The commands and code of the site's start page and guides, run as they stand, but small."""

import contextlib
import io
import json
import re
import runpy
import shlex
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from service_client import Client
from test_readme import ROOT, blocks, folder, run

from kdjax.cli import main
from kdjax.service.app import App

__all__ = ["folder"]

DOCS = ROOT / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
FEW = {"classifier.networks": 2, "classifier.steps": 20}
QUICK = FEW | {
    "teacher.hidden": (4,), "teacher.epochs": 1, "student.hidden": (2,), "student.epochs": 1,
    "data.train_stride": 400, "baselines": ("random",),
}  # fmt: skip
SHORT = ["--config.classifier.networks=2", "--config.classifier.steps=20"]


def commands(page: Path) -> list[list[str]]:
    """The commands of the program on a page."""
    text = "\n".join(blocks("sh", page.read_text("utf-8"))).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("kdjax ")]
    return [shlex.split(line) for line in lines]


def codes(page: Path) -> list[str]:
    """The Python code of a page."""
    return blocks("python", page.read_text("utf-8"))


def said(code: str, folder: Path) -> str:
    """What a piece of code prints in a folder."""
    (folder / "guide.py").write_text(code, encoding="utf-8")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        runpy.run_path(str(folder / "guide.py"), run_name="__main__")
    return output.getvalue()


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """The folder behind the first guide's first command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        first = commands(DOCS / "guides" / "own_data.md")[0]
        run(first, patch)
    return folder


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_every_guide_begins_with_a_command_or_code() -> None:
    for page in GUIDES:
        if page.stem != "index":
            text = page.read_text("utf-8")
            assert text.index("\n```") < 200, page
            assert "\n## What to expect\n" in text, page


@pytest.mark.slow
def test_start(folder: Path) -> None:
    (command,) = commands(DOCS / "index.md")
    (code,) = codes(DOCS / "index.md")
    small = ["--config.teacher.epochs=1", "--config.student.epochs=1", *SHORT]
    small += ["--config.data.train_stride=400", "--config.baselines=('classifier',)"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*command, *small]) == 0
    for name in ("report.html", "results.json", "detectors"):
        assert f"runs/quickstart/{name}" in (DOCS / "index.md").read_text("utf-8")
        assert (folder / "runs" / "quickstart" / name).exists()
    assert "severity" in said(code, folder)


@pytest.mark.slow
def test_own_data(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = DOCS / "guides" / "own_data.md"
    for command in commands(page)[1:]:
        run(command, monkeypatch)
    assert len(pd.read_csv(trained / "scores.csv")) == 24_000
    assert (trained / "scores.csv.events.csv").exists()
    assert "Plotly" in (trained / "scores.html").read_text("utf-8")
    (code,) = codes(page)
    assert "severity" in said(code.replace("300", "20"), trained)


@pytest.mark.slow
def test_thresholds(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrate, score, stream = commands(DOCS / "guides" / "thresholds.md")
    assert "events a day" in run(calibrate, monkeypatch)
    run(score, monkeypatch)
    assert (trained / "fewer.csv.events.csv").exists()
    run(stream, monkeypatch)
    assert (trained / "answers.jsonl").stat().st_size > 0


@pytest.mark.slow
def test_explain(trained: Path) -> None:
    (code,) = codes(DOCS / "guides" / "explain.md")
    printed = said(code, trained)
    assert re.search(r"^2026-01-02 2[23]:\d\d:\d\d .* flow;", printed, re.MULTILINE), (
        printed
    )
    assert "Plotly" in (trained / "alarm.html").read_text("utf-8")


@pytest.mark.slow
def test_deploy(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = DOCS / "guides" / "deploy.md"
    export, stream = commands(page)
    run(export, monkeypatch)
    run(stream, monkeypatch)
    lines = (trained / "answers.jsonl").read_text("utf-8").splitlines()
    assert sum("event" not in json.loads(line) for line in lines) >= 150
    (code,) = codes(page)
    assert re.match(r"\[[\d.e+]+\] \[[01]\]", said(code, trained))


@pytest.mark.slow
def test_serve(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = DOCS / "guides" / "serve.md"
    export, serve = commands(page)
    run(export, monkeypatch)
    table = pd.read_csv(trained / "plant.csv", nrows=200)
    answers = []

    def ask(app: App, _: object) -> None:
        text = page.read_text("utf-8")
        (route,) = re.findall(r"http://127.0.0.1:8080(/v1/\S+)", text)
        kind, body = {"content-type": "text/csv"}, table.to_csv(index=False)
        client = Client(app, {"plant": SimpleNamespace(close=lambda: None)})
        answers.append(client.post(route, content=body, headers=kind))
        answers.append(client.get("/metrics"))
        answers.append(client.get("/"))
        client.close()

    monkeypatch.setattr("kdjax.service.server.serve_until_signal", ask)
    run(serve, monkeypatch)
    assert [answer.status_code for answer in answers] == [200] * 3
    rows = answers[0]
    assert len(rows.text.splitlines()) >= 200
    assert json.loads(rows.text.splitlines()[0])["score"] is None


@pytest.mark.slow
def test_sweep(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    page = DOCS / "guides" / "sweep.md"
    for command in commands(page):
        run(command, monkeypatch)
    assert (trained / "runs" / "sweep" / "summary.csv").exists()
    assert (trained / "runs" / "search" / "report.html").exists()
    (code,) = codes(page)
    (trained / "own_sweep.py").write_text(code, encoding="utf-8")
    run(
        ["kdjax", "sweep", "--config=own_sweep.py", "--workdir=runs/own_sweep"],
        monkeypatch,
    )
    assert len(pd.read_csv(trained / "runs" / "own_sweep" / "members.csv")) == 6


@pytest.mark.slow
def test_many_machines(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in commands(DOCS / "guides" / "scale.md"):
        run(command, monkeypatch)
    for fleet in ("plants", "budget"):
        catalogue = pd.read_parquet(trained / "fleets" / fleet / "catalogue.parquet")
        assert catalogue["state"].tolist() == ["ready", "ready"]
    assert (trained / "scores" / "m1.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "start"), [("functional", "loss 0."), ("add_model", "[")]
)
def test_library(page: str, start: str, folder: Path) -> None:
    (code,) = codes(DOCS / "guides" / f"{page}.md")
    assert said(code, folder).startswith(start)


@pytest.mark.slow
def test_the_cheat_sheet(folder: Path) -> None:
    pytest.importorskip("onnx")
    code = "\n".join(codes(DOCS / "cheatsheet.md"))
    for text, small in (
        ("KDDetector()", f"KDDetector(settings={FEW})"),
        ('detector="student"', 'detector="student", student_epochs=2'),
        ('"plants"}', '"plants", **SMALL}'),
        ('"plant.csv"}', '"plant.csv", **SMALL}'),
    ):
        assert text in code
        code = code.replace(text, small)
    printed = said(f"SMALL = {QUICK}\n{code}", folder)
    assert re.match(r"(normal|anomaly) \d+\.\d+\n$", printed), printed
    for name in ("fresh.html", "plant.stablehlo", "runs/sheet/report.html"):
        assert (folder / name).stat().st_size > 0
    names = re.findall(r"\bkdjax\.(\w+)", code)
    assert {"KDDetector", "windows", "fit_fleet", "open_stream"} <= set(names)
