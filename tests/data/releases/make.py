"""Makes the files of the current version that later versions must go on reading.

    python tests/data/releases/make.py [--output=FOLDER]

Run once for each release, at its version, and commit the folder `VERSION/` that it
writes beside this file; `tests/test_releases.py` then reads the files of all versions.
About half a minute. What the folder holds, from `fleet/` on since 0.2.0:

    train.csv, rows.csv    three channels of two machines, and rows to score
    command.json           the flags of `run`
    run/                   a work directory that was stopped after its teacher
    detector/              the student's folder
    detector.onnx, detector.stablehlo     the student of the machine `press`
    state.json             of a stream of it, after the first rows of rows.csv
    fleet/                 of three machines with times, a counter and missing cells that
                           share a budget of alarms; `few` has the fleet's own student
    plant_rows.csv         rows of these machines to score
    kinds/KIND, kinds/KIND.onnx     `KDDetector`s that learn otherwise than the student,
                           with a channel of context
    machines.sqlite        the state of a stream of many entities
    fleet.sqlite           the same of the fleet, with an event that is open
    service.sqlite         the state of a service on detector.onnx, after a kill
    *.jsonl                the answers to the rows after these three states
    expected.npz           windows, all models' scores of them, and the stream's scores of
                           the rows after state.json
"""

import argparse
import configparser
import contextlib
import importlib.metadata
import io
import json
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import kdjax
from kdjax.cli import main as program
from kdjax.detection.detector import entity_index, score_windows
from kdjax.detection.scores import window_scores
from kdjax.io.files import write_manifest

CHANNELS = ("load", "heat", "flow")
MACHINES = {"press": 420, "saw": 260}
WINDOW, ROWS, BEFORE_STATE = 10, 60, 25
COMMAND = (
    "--config.data.path=train.csv",
    "--config.data.entity_column=machine",
    f"--config.data.window={WINDOW}",
    "--config.data.stride=5",
    "--config.teacher.hidden=4",
    "--config.teacher.epochs=3",
    "--config.student.hidden=3",
    "--config.student.epochs=2",
    "--config.threshold.false_alarm_rate=0.1",
    "--config.baselines=random",
)
PLANT = {**MACHINES, "few": 30}
FLEET = (
    "plant.csv",
    "--config.data.entity_column=machine",
    "--config.data.ignore=note",
    "--config.data.missing=ffill",
    f"--config.data.window={WINDOW}",
    "--config.data.stride=5",
    "--config.distill.alpha=0",
    "--config.student.hidden=3",
    "--config.student.epochs=2",
    "--config.threshold.method=budget",
    "--config.threshold.budget=50/day",
    "--config.threshold.budget_scope=fleet",
    "--config.threshold.clear=0.8",
    "--config.baselines=random",
)
KINDS = ("classifier", "cnn_forecast", "gru_forecast", "memory")
SETTINGS = {
    "classifier.channels": 4,
    "classifier.networks": 2,
    "classifier.steps": 40,
    "data.context": ("mode",),
    "forecast.steps": 40,
    "forecast.units": 4,
}
# What streams of many entities are of, and how they are asked for.
SOURCES = {"machines": "detector", "fleet": "fleet"}
OF_MANY = "--entity_column=machine"
# Rows before the states of many entities: one has an event that ends after them.
IN_EVENT = 22


def main() -> None:
    """Works in a temporary folder, and copies what is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    version = source_version()
    if (installed := importlib.metadata.version("kdjax")) != version:
        sys.exit(f"kdjax {installed} is installed: run pip install -e . for {version}")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / version)
    output = parser.parse_args().output.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        make(Path("made"))
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree("made", output)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {size:,} bytes")


def source_version() -> str:
    """The version of the checkout."""
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[3] / "setup.cfg")
    return setup["metadata"]["version"]


def make(made: Path) -> None:
    """Everything, below the current folder."""
    made.mkdir()
    rng = np.random.default_rng(20)
    frames = [
        frame(waves(rng, rows)).assign(machine=name) for name, rows in MACHINES.items()
    ]
    pd.concat(frames).to_csv("train.csv", index=False)
    rows = waves(rng, ROWS)
    rows[40:44, 0] += 4
    frame(rows).to_csv("rows.csv", index=False)
    plant(rng, PLANT).to_csv("plant.csv", index=False)
    later = plant(rng, dict.fromkeys(PLANT, ROWS), breaks=18)
    later.to_csv("plant_rows.csv", index=False)
    call("run", *COMMAND, "--workdir=run")
    write_files(made)
    write_fleet(made)
    found = {**expected(rows), **write_kinds(made, frames[0], rows)}
    np.savez(made / "expected.npz", **found)
    write_states(made)
    forget_folder(made)


def forget_folder(made: Path) -> None:
    """Orbax notes where a step was written, which is nobody's business later."""
    here = os.fsencode(os.getcwd())
    for path in filter(Path.is_file, made.rglob("*")):
        if here in (data := path.read_bytes()):
            assert made / "run" in path.parents, f"{path} names the folder"
            path.write_bytes(data.replace(here, b"."))
    for step in made.glob("run/checkpoints/*/*"):
        write_manifest(step)


def waves(rng: np.random.Generator, rows: int) -> np.ndarray:
    """`[N, 3]` float32, as a file with six digits holds them."""
    load = np.sin(np.arange(rows) / 7) + 0.1 * rng.normal(size=rows)
    heat = 20 + 3 * np.roll(load, 2) + 0.2 * rng.normal(size=rows)
    flow = 0.01 * rng.normal(size=rows)
    return np.round(np.stack([load, heat, flow], axis=1), 6).astype(np.float32)


def frame(values: np.ndarray) -> pd.DataFrame:
    """Rows as a table."""
    return pd.DataFrame(values, columns=list(CHANNELS))


def plant(
    rng: np.random.Generator, machines: dict[str, int], *, breaks: int | None = None
) -> pd.DataFrame:
    """A row a minute of each machine, in turns; `flow` is too large for float32."""
    frames = []
    for name, rows in machines.items():
        own = frame(waves(rng, rows)).astype(float)
        own["flow"] = 1.7e9 + (100 * own["flow"]).round(3)
        own.loc[rows // 2 : rows // 2 + 2, "heat"] = np.nan
        if breaks is not None:
            own.loc[breaks : breaks + 3, "load"] += 6
        own.insert(0, "machine", name)
        own.insert(0, "time", pd.date_range("2026-03-01", periods=rows, freq="min"))
        frames.append(own.assign(note="ok"))
    return pd.concat(frames).sort_values("time", kind="stable")


def call(*arguments: str) -> None:
    """Runs a verb, which must end well."""
    if code := program(["kdjax", *arguments]):
        sys.exit(code)


def write_files(made: Path) -> None:
    """The files that the verbs write."""
    for name in ("train.csv", "rows.csv", "plant_rows.csv"):
        shutil.copy(name, made / name)
    (made / "command.json").write_text(json.dumps(COMMAND, indent=1) + "\n")
    shutil.copytree("run/detectors/student", made / "detector")
    (made / "run" / "checkpoints").mkdir(parents=True)
    for name in ("config.json", "data.json"):
        shutil.copy(f"run/{name}", made / "run" / name)
    log = Path("run/metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
    kept = [line for line in log if json.loads(line)["phase"] == "teacher"]
    (made / "run" / "metrics.jsonl").write_text("".join(kept), encoding="utf-8")
    shutil.copytree("run/checkpoints/teacher", made / "run" / "checkpoints" / "teacher")
    for form in ("onnx", "stablehlo"):
        call(
            "export", "--detector=made/detector", "--entity=press", f"--format={form}",
            f"--output=made/detector.{form}",
        )  # fmt: skip
    stream(made / "detector", made / "state.json", lines(0, BEFORE_STATE))


def write_fleet(made: Path) -> None:
    """A fleet without its page, which nothing reads."""
    call("fleet", *FLEET, "--output=fleet")
    shutil.copytree(
        "fleet", made / "fleet", ignore=shutil.ignore_patterns("index.html", ".*")
    )


def read_rows() -> np.ndarray:
    """The values of rows.csv, `[ROWS, 3]` float32."""
    return pd.read_csv("rows.csv").to_numpy(np.float32)


def with_mode(values: np.ndarray) -> pd.DataFrame:
    """Rows with a channel of context, which only says what load is asked for."""
    return frame(values).assign(mode=(values[:, 0] > 0).astype(np.float32))


def write_kinds(
    made: Path, train: pd.DataFrame, rows: np.ndarray
) -> dict[str, np.ndarray]:
    """A detector of each kind, its ONNX file, and its scores and labels of rows.csv."""
    train = with_mode(train[list(CHANNELS)].to_numpy())
    found = {}
    for kind in KINDS:
        detector = kdjax.KDDetector(
            detector=kind, window_size=WINDOW, stride=WINDOW, false_alarm_rate=0.1,
            settings=SETTINGS,
        ).fit(train)  # fmt: skip
        folder = made / "kinds" / kind
        detector.save(folder)
        call(
            "export", f"--detector={folder}", f"--output={folder}.onnx",
            f"--entity={detector.entity_}",
        )  # fmt: skip
        found[f"{kind}/window_score"] = detector.decision_function(with_mode(rows))
        found[f"{kind}/label"] = detector.predict(with_mode(rows))
    return found


def write_states(made: Path) -> None:
    """States of many entities, and the answers to what comes after them."""
    for name in ("machines", "fleet"):
        source = made / SOURCES[name]
        state = made / f"{name}.sqlite"
        stream(source, state, machine_lines(name, 0, IN_EVENT), OF_MANY)
        shutil.copy(state, "after.sqlite")
        rest = machine_lines(name, IN_EVENT, ROWS)
        answers = stream(source, Path("after.sqlite"), rest, OF_MANY)
        write_lines(made / f"{name}.jsonl", answers)
    with service(made / "detector.onnx", Path("service")) as answer:
        for first, last in ((0, 12), (12, IN_EVENT)):
            answer(first, last)
        # As a kill would leave it.
        backup(Path("service/press.sqlite"), made / "service.sqlite")
        write_lines(made / "service.jsonl", answer(IN_EVENT, ROWS))


def write_lines(path: Path, answers: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    text = "".join(json.dumps(answer) + "\n" for answer in answers)
    path.write_text(text, encoding="utf-8")


def lines(first: int, last: int) -> list[str]:
    """The header and some rows of rows.csv."""
    header, *rows = Path("rows.csv").read_text("utf-8").splitlines(keepends=True)
    return [header, *rows[first:last]]


def machine_lines(name: str, first: int, last: int) -> list[str]:
    """The header and some rows of each machine, in turns."""
    if name == "fleet":
        text = Path("plant_rows.csv").read_text("utf-8")
        header, *rows = text.splitlines(keepends=True)
        return [header, *rows[3 * first : 3 * last]]
    header, *rows = lines(0, ROWS)
    # The rows of one are those of the other from the last to the first.
    turns = [*zip(rows, rows[::-1], strict=True)][first:last]
    both = (f"press,{row}saw,{other}" for row, other in turns)
    return "".join([f"machine,{header}", *both]).splitlines(keepends=True)


def stream(
    detector: Path,
    state: Path,
    rows: list[str],
    *flags: str,
    backend: str = "jax",
) -> list[dict[str, Any]]:
    """What `stream` answers, going on from a state and leaving one."""
    answers, given = io.StringIO(), sys.stdin
    try:
        sys.stdin = io.StringIO("".join(rows))
        with contextlib.redirect_stdout(answers):
            call(
                "stream", f"--detector={detector}", f"--state={state}",
                f"--backend={backend}", *(flags or ("--entity=press",)),
            )  # fmt: skip
    finally:
        sys.stdin = given
    Path(f"{state}.lock").unlink(missing_ok=True)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


@contextlib.contextmanager
def service(file: Path, folder: Path) -> Iterator[Any]:
    """A service with its state in a folder; gives what answers some rows of rows.csv."""
    from kdjax.service import bodies
    from kdjax.service.engine import Engine, Limits
    from kdjax.service.journal import Clock

    folder.mkdir(exist_ok=True)
    engine = Engine("press", file, folder, limits=Limits(), clock=Clock())

    def answer(first: int, last: int) -> list[dict[str, Any]]:
        rows = read_rows().tolist()
        turns = [*zip(rows, rows[::-1], strict=True)][first:last]
        body = {
            "rows": [row for two in turns for row in two],
            "entity": [*"ab"] * (last - first),
            "time": [60 * n for n in range(first, last) for _ in "ab"],
        }
        data = json.dumps(body).encode()
        sent = bodies.read_rows(data, bodies.JSON, engine.loaded.plan, most=1000)
        answers = engine.submit(sent).result()
        return [
            {**json.loads(text), "events": list(events)}
            for text, events in zip(answers.texts, answers.events, strict=True)
        ]

    try:
        yield answer
    finally:
        engine.close()


def backup(source: Path, target: Path) -> None:
    """A copy of a SQLite file that is in use, as one file."""
    with (
        contextlib.closing(sqlite3.connect(source)) as used,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        used.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")
        copy.execute("VACUUM")


def expected(rows: np.ndarray) -> dict[str, np.ndarray]:
    """What the files are to give."""
    starts = np.arange(0, ROWS - WINDOW + 1, 5)
    found = {"windows": rows[starts[:, None] + np.arange(WINDOW)]}
    for model in ("teacher", "student"):
        detector = kdjax.load_detector(f"run/detectors/{model}")
        index = entity_index(detector, "press")
        points = score_windows(detector, index, rows, starts)
        found[f"{model}/point_score"] = points
        found[f"{model}/window_score"] = window_scores(points, count=0)
    shutil.copy("made/state.json", "state.json")
    answers = stream(
        Path("made/detector"), Path("state.json"), lines(BEFORE_STATE, ROWS)
    )
    answers = [answer for answer in answers if "event" not in answer]
    for name in ("score", "window_score", "alarm"):
        found[f"stream/{name}"] = np.array([answer[name] for answer in answers])
    return found


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
