"""Changes or cuts every byte of saved files in turn: refused, or without effect.

    python benchmarks/attacks/mutations.py --output=mutations.json

A small run is trained, with a network, an ensemble of a network and a baseline, and a
baseline. Then the files of its three detectors, their ONNX and StableHLO exports, the state of a
stream, the records of the work directory and the newest checkpoints of teacher and
student are damaged one at a time: in small files every byte is flipped and the file is
cut at every byte, in large ones at places drawn by lot; beside it bytes set to 0 and 255,
put in and taken out, blocks swapped, bytes appended, files emptied, removed, exchanged
for those of another artifact, and replaced by a folder or a link. What uses the file then
has to end with a KdjaxError, or to give bit for bit what it gave before. Damaged
checkpoints have to give way to the step before with a warning that names them, and some
runs go on from there to the end, bit for bit where the undisturbed one arrived. About an
hour on one core.
"""

import argparse
import json
import logging
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from damages import (
    Subject,
    attack,
    attack_checkpoints,
    copy,
    do,
    heard,
    names,
    one_damage,
)

from kdjax.config import get_config, override, resolve
from kdjax.detection.detector import entity_index, score_windows, usual_entity
from kdjax.detection.storage import load_detector
from kdjax.detection.stream_rules import plan_of
from kdjax.detection.streaming import StreamDetector, WindowResult
from kdjax.errors import KdjaxError
from kdjax.experiment.pipeline import run
from kdjax.experiment.workdir import cut_lines, read_lines
from kdjax.export.container import Scored, load_onnx
from kdjax.export.files import export_file
from kdjax.export.stablehlo import load_stablehlo
from kdjax.io.environment import describe_environment
from kdjax.io.files import load_state, write_text
from kdjax.scoring.streams import run_stream

WINDOW, CHANNELS = 10, ("load", "heat", "speed")


def windows(count: int = 8) -> np.ndarray:
    """Fixed windows of raw rows, `[count, L, D]`, as the plant makes them."""
    rows = plant(np.random.default_rng(5), WINDOW + count - 1)
    view = np.lib.stride_tricks.sliding_window_view(rows, WINDOW, axis=0)
    return np.ascontiguousarray(view.swapaxes(1, 2))


def plant(rng: np.random.Generator, rows: int) -> np.ndarray:
    """`[rows, 3]` float32: correlated waves with noise."""
    time = np.arange(rows)
    load = np.sin(time / 7) + 0.1 * rng.normal(size=rows)
    heat = 20 + 3 * np.roll(load, 2) + 0.2 * rng.normal(size=rows)
    return np.stack([load, heat, np.cos(time / 5)], axis=1).astype(np.float32)


def detector_subject(folder: Path, other: Path) -> Subject:
    """A detector, whose scores of fixed rows count, and one to take files from."""
    rows = windows(8)[:, -1]
    starts = np.arange(3)

    def use() -> bytes:
        detector = load_detector(folder)
        scores = score_windows(detector, 0, np.tile(rows, (2, 1)), starts)
        taus = [threshold.tau for threshold in detector.thresholds]
        return scores.tobytes() + repr((taus, detector.channels)).encode()

    files = tuple(sorted(path for path in folder.iterdir() if path.is_file()))
    return Subject(
        f"detector {folder.name}", folder, files, use, lambda p: other / p.name
    )


def export_subject(
    path: Path, load: Callable[[Path], Any], other: Path, name: str
) -> Subject:
    """An exported file, whose scores of fixed windows count.

    It is never exchanged for a sound one of its kind: that is another detector, whole.
    """

    def use() -> bytes:
        scorer = load(path)
        scored: Scored = scorer.run(windows())
        return b"".join(part.tobytes() for part in scored) + repr(scorer.plan).encode()

    return Subject(name, path, (path,), use, lambda _: other)


def state_subject(
    path: Path, other: Path, make: Callable[[], StreamDetector]
) -> Subject:
    """The state of a stream that `make` gives, and one of another stream."""

    def use() -> bytes:
        state = load_state(path)
        stream = make()
        stream.restore(state["stream"])
        return json.dumps([state, stream.state()], sort_keys=True).encode()

    return Subject("stream state", path, (path,), use, lambda _: other)


def record_subjects(workdir: Path, settings: dict[str, Any]) -> list[Subject]:
    """The records of a finished run: what running it again says, and its log."""

    def again() -> bytes:
        results = run(settings, workdir)
        return json.dumps([results["rows"], results["dataset"]]).encode()

    def log() -> bytes:
        # It may lose lines, said aloud: no result hangs on them.
        for phase in ("teacher", "student"):
            cut_lines(workdir, phase, 3)
        assert all(line["step"] >= 0 for line in read_lines(workdir))
        return b""

    names = ("config.json", "data.json", "results.json", ".results.sha256")
    records = tuple(workdir / name for name in names)
    metrics = workdir / "metrics.jsonl"
    return [
        Subject(
            "records", workdir, records, again, lambda _: metrics, 40, 0, settled=False
        ),
        Subject(
            "log", workdir, (metrics,), log, lambda _: records[0], 200, 0, settled=False
        ),
    ]


def resumed_runs(
    workdir: Path, settings: dict[str, Any], rng: random.Random, count: int
) -> Iterator[dict[str, Any]]:
    """Runs that go on with a damaged newest checkpoint, to the very end.

    Every fifth has a damaged log instead, which no warning need tell of.
    """
    keep = workdir.with_name("finished")
    copy(workdir, keep)
    expected = _essence(keep)
    for number in range(count):
        phase = workdir / "checkpoints" / ("teacher", "student")[number % 2]
        steps = sorted(int(p.name) for p in phase.iterdir() if p.name.isdecimal())
        newest = phase / str(steps[-1])
        path = rng.choice(sorted(p for p in newest.rglob("*") if p.is_file()))
        if number % 5 == 4:
            path = workdir / "metrics.jsonl"
        damage = one_damage(path, rng)
        do(path, damage)
        # Not finished any more: what follows the checkpoints is made anew.
        (workdir / "results.json").unlink()
        shutil.rmtree(workdir / "detectors")
        outcome, told = "wrong", ""
        with heard() as said:
            try:
                run(settings, workdir)
                if _essence(workdir) == expected:
                    outcome = "fell back" if names(said, newest) else "same"
            except KdjaxError as error:
                outcome, told = "refused", str(error)[:300]
            except Exception as error:  # noqa: BLE001 - there is a sound step
                outcome, told = "crash", repr(error)[:300]
        yield {
            "subject": f"run with a damaged {'log' if number % 5 == 4 else 'checkpoint'}",
            "file": path.relative_to(workdir).as_posix(),
            "damage": damage.kind,
            "place": damage.place,
            "outcome": outcome,
            "told": told,
        }
        copy(keep, workdir)


def _essence(workdir: Path) -> bytes:
    """What a run came to: parameters and calibration, bit for bit, and its table."""
    pieces = []
    for path in sorted(workdir.glob("detectors/*/arrays.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            pieces += [arrays[name].tobytes() for name in sorted(arrays.files)]
    results = json.loads((workdir / "results.json").read_text("utf-8"))
    return b"".join([*pieces, json.dumps(results["rows"]).encode()])


def make_run(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A small finished run: its work directory and its settings."""
    rng = np.random.default_rng(3)
    paths = [folder / "train.csv", folder / "test.csv"]
    for path, rows in zip(paths, (600, 200), strict=True):
        values = plant(rng, rows)
        text = "\n".join(",".join(map(repr, row)) for row in values.tolist())
        path.write_text(",".join(CHANNELS) + "\n" + text + "\n")
    changes = {
        "data.path": str(paths[0]),
        "data.test_path": str(paths[1]),
        "data.window": WINDOW,
        "data.stride": 5,
        "teacher.components": ("autoencoder", "difference"),
        "teacher.hidden": (4,),
        "teacher.epochs": 2,
        "student.hidden": (3,),
        "student.epochs": 2,
        "train.log_every": 1,
        "train.checkpoint_seconds": 0.0,
        "threshold.false_alarm_rate": 0.2,
        "baselines": ("pca",),
    }
    settings = resolve(override(get_config(), changes))
    run(settings, folder / "run")
    return folder / "run", settings


def subjects(folder: Path, workdir: Path, settings: dict[str, Any]) -> list[Subject]:
    """All that a finished run leaves, and what is made of it."""
    detectors = workdir / "detectors"
    student, teacher = detectors / "student", detectors / "teacher"
    found = [
        detector_subject(student, detectors / "student_alone"),
        detector_subject(teacher, student),
        detector_subject(detectors / "pca", student),
    ]
    for name, load in (("onnx", load_onnx), ("stablehlo", load_stablehlo)):
        path = folder / f"student.{name}"
        list(export_file(student, format=name, output=path, data=folder / "test.csv"))
        found.append(export_subject(path, load, student / "arrays.npz", name))
    lines = (folder / "test.csv").read_text("utf-8").splitlines(keepends=True)
    for name, detector in (("state", student), ("other", teacher)):
        output = folder / f"{name}.jsonl"
        run_stream(lines[:60], output, detector=detector, state=folder / name)
    loaded = load_detector(student)
    plan = plan_of(loaded, entity_index(loaded, usual_entity(loaded)))
    found.append(
        state_subject(
            folder / "state", folder / "other", lambda: StreamDetector(plan, _unasked)
        )
    )
    return [*found, *record_subjects(workdir, settings)]


def _unasked(windows: np.ndarray) -> WindowResult:
    raise AssertionError("no row comes")


def checkpoint_template(workdir: Path, phase: str) -> Any:
    """The arrays of a phase's newest step, as orbax finds them."""
    import orbax.checkpoint as ocp

    steps = [p for p in (workdir / "checkpoints" / phase).iterdir()]
    newest = max((p for p in steps if p.name.isdecimal()), key=lambda p: int(p.name))
    with ocp.StandardCheckpointer() as reader:
        return reader.restore((newest / "arrays").resolve())


def main() -> None:
    """Damages everything and writes what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", default=1, type=int)
    parser.add_argument("--runs", default=30, type=int, help="that go to the end")
    parser.add_argument("--output", required=True, type=Path)
    given = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)
    started, rng = time.monotonic(), random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workdir, settings = make_run(folder)
        found: list[dict[str, Any]] = []
        for subject in subjects(folder, workdir, settings):
            found += told(subject.name, attack(subject, rng))
        for phase in ("teacher", "student"):
            template = checkpoint_template(workdir, phase)
            directory = workdir / "checkpoints" / phase
            found += told(phase, attack_checkpoints(directory, template, rng))
        runs = told("runs", resumed_runs(workdir, settings, rng, given.runs))
    report = summary(found, runs) | {
        "seed": given.seed,
        "seconds": round(time.monotonic() - started),
        "environment": describe_environment(),
    }
    write_text(given.output, json.dumps(report, indent=1) + "\n")


def told(name: str, outcomes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The outcomes, counted aloud."""
    found = [*outcomes]
    print(name, dict(Counter(one["outcome"] for one in found)), flush=True)
    return found


def summary(found: list[dict[str, Any]], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by subject and by kind of damage, and all that nothing was said of.

    The log may lose lines, runs go on: of these only what is wrong is listed.
    """
    odd = [
        one
        for one in (*found, *runs)
        if one["outcome"] not in ("refused", "fell back")
        and (one["outcome"] != "same" or "log" not in one["subject"])
    ]
    return {
        "mutations": len(found),
        "outcomes": Counter(one["outcome"] for one in found),
        "by_subject": _table(found, "subject"),
        "by_damage": _table(found, "damage"),
        "runs": Counter(one["outcome"] for one in runs),
        "taken": odd[:500],
    }


def _table(found: list[dict[str, Any]], key: str) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for one in found:
        row = table.setdefault(one[key], {})
        row[one["outcome"]] = row.get(one["outcome"], 0) + 1
    return table


if __name__ == "__main__":
    main()
