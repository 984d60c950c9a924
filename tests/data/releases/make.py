"""Makes the files of the current version that later versions must go on reading.

    python tests/data/releases/make.py [--output=FOLDER]

Run once for each release, at its version, and commit the folder `VERSION/` that it
writes beside this file; `tests/test_releases.py` then reads the files of all versions.
A few seconds. What the folder holds:

    train.csv, rows.csv    three channels of two machines, and rows to score
    command.json           the flags of `run`
    run/                   a work directory that was stopped after its teacher
    detector/              the student's folder
    detector.onnx, detector.stablehlo     the student of the machine `press`
    state.json             of a stream of it, after the first rows of rows.csv
    expected.npz           windows, the teacher's and the student's scores of them, and
                           the stream's scores of the rows after the state
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from kdjax.cli import main as kdjax
from kdjax.detection.detector import entity_index, score_windows
from kdjax.detection.scores import window_scores
from kdjax.detection.storage import load_detector
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


def main() -> None:
    """Works in a temporary folder, and copies what is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    version = importlib.metadata.version("kdjax")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / version)
    output = parser.parse_args().output.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        make(Path("made"))
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree("made", output)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {size:,} bytes")


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
    call("run", *COMMAND, "--workdir=run")
    write_files(made)
    np.savez(made / "expected.npz", **expected(rows))
    forget_folder(made)


def forget_folder(made: Path) -> None:
    """Orbax notes where a step was written, which is nobody's business later."""
    here = os.fsencode(os.getcwd())
    for path in filter(Path.is_file, made.rglob("*")):
        if here in (data := path.read_bytes()):
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


def call(*arguments: str) -> None:
    """Runs a verb, which must end well."""
    if code := kdjax(["kdjax", *arguments]):
        sys.exit(code)


def write_files(made: Path) -> None:
    """The files that the verbs write."""
    for name in ("train.csv", "rows.csv"):
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


def lines(first: int, last: int) -> list[str]:
    """The header and some rows of rows.csv."""
    header, *rows = Path("rows.csv").read_text("utf-8").splitlines(keepends=True)
    return [header, *rows[first:last]]


def stream(
    detector: Path, state: Path, rows: list[str], backend: str = "jax"
) -> list[dict[str, object]]:
    """What `stream` answers, going on from a state and leaving one."""
    answers, given = io.StringIO(), sys.stdin
    try:
        sys.stdin = io.StringIO("".join(rows))
        with contextlib.redirect_stdout(answers):
            call(
                "stream", f"--detector={detector}", "--entity=press",
                f"--state={state}", f"--backend={backend}",
            )  # fmt: skip
    finally:
        sys.stdin = given
    Path(f"{state}.lock").unlink(missing_ok=True)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def expected(rows: np.ndarray) -> dict[str, np.ndarray]:
    """What the files are to give."""
    starts = np.arange(0, ROWS - WINDOW + 1, 5)
    found = {"windows": rows[starts[:, None] + np.arange(WINDOW)]}
    for model in ("teacher", "student"):
        detector = load_detector(f"run/detectors/{model}")
        index = entity_index(detector, "press")
        points = score_windows(detector, index, rows, starts)
        found[f"{model}/point_score"] = points
        found[f"{model}/window_score"] = window_scores(points, count=0)
    shutil.copy("made/state.json", "state.json")
    answers = stream(
        Path("made/detector"), Path("state.json"), lines(BEFORE_STATE, ROWS)
    )
    for name in ("score", "window_score", "alarm"):
        found[f"stream/{name}"] = np.array([answer[name] for answer in answers])
    return found


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
