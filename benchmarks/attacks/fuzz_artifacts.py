"""The target `artifacts` of the fuzzers: saved files with some bytes changed.

With the old checksum a changed byte has to be refused. With a new checksum, which only an
attacker or a fault of kdjax can make, the loaded parts have to be consistent. Bytes
without a valid checksum reach no parser outside Python: of ONNX files with a new checksum
only the stream rules are read.
"""

import functools
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax.config import get_config, to_json
from kdjax.data.scaler import Scaler
from kdjax.detection.detector import Detector
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.storage import load_detector, save_detector
from kdjax.detection.stream_rules import plan_from_json, plan_of, plan_to_json
from kdjax.detection.streaming import StreamDetector, WindowResult
from kdjax.detection.thresholds import Threshold
from kdjax.errors import ArtifactError
from kdjax.experiment.workdir import (
    check_data,
    check_settings,
    cut_lines,
    read_lines,
    read_results,
)
from kdjax.export import stablehlo
from kdjax.export.container import load_onnx, read_plan, sealed
from kdjax.export.onnx import onnx_file
from kdjax.export.stablehlo import load_stablehlo, stablehlo_file
from kdjax.io.files import (
    MANIFEST,
    load_state,
    save_state,
    verify_manifest,
    write_manifest,
)
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.residual import ResidualModel
from kdjax.scoring.readings import Answered, RowReader
from kdjax.scoring.streams import _One

FILES = ("detector.json", "arrays.npz", "card.json", "card.md", MANIFEST)
RECORDS = ("metrics.jsonl", "config.json", "data.json", "results.json")


class Base(NamedTuple):
    """What is changed: a folder, a state and two exports, all of one detector."""

    folder: Path
    state: bytes
    onnx: bytes
    hlo: bytes


def detector() -> Detector:
    """A small network that needed no training."""
    shape = Architecture(2, (3,))
    params = jax.device_get(network(shape).init(jax.random.key(0)))
    own, pooled = np.eye(2, dtype=np.float32), 2 * np.eye(2, dtype=np.float32)
    return Detector(
        model=ResidualModel("autoencoder", params, shape),
        channels=("a", "b"),
        window=4,
        stride=2,
        allowed_points=0,
        max_gap=5.0,
        entities=("e",),
        scalers=Scaler(np.float32([[1, 2], [0, 0]]), np.float32([[2, 4], [1, 1]])),
        gaussians=Gaussian(np.zeros((2, 2), np.float32), np.stack([own, pooled])),
        thresholds=(
            Threshold(8.0, "conformal", 0.1, 20, 19, "own"),
            Threshold(12.0, "conformal", 0.1, 40, 37, "pooled"),
        ),
        card={"title": "by hand"},
        calibration=(np.arange(5.0), np.arange(9.0)),
        step=1.0,
    )


def plain_stream(adaptive_step: float = 0.0) -> StreamDetector:
    """Its stream, without its network."""

    def score(window: np.ndarray) -> WindowResult:
        points = np.abs(window[0]).max(axis=1)
        return WindowResult(points, float(points.max()), np.abs(window[0]))

    return StreamDetector(plan_of(detector(), 0), score, adaptive_step=adaptive_step)


def example_state() -> dict[str, Any]:
    """A state as a stream with an output file writes it."""
    stream = plain_stream()
    for row in range(7):
        stream.update([row, -row], row)
    return {
        "stream": stream.state(),
        "answered": Answered(9).state(),
        "faulty": 0,
        "output": ["answers.jsonl", 700],
    }


@functools.cache
def base() -> Base:
    """The undamaged files, made once a process."""
    folder = Path(tempfile.mkdtemp(prefix="kdjax-fuzz-"))
    save_detector(folder / "detector", detector())
    save_state(folder / "state", example_state())
    return Base(
        folder / "detector",
        (folder / "state").read_bytes(),
        onnx_file(detector(), 0),
        stablehlo_file(detector(), 0),
    )


def spliced(content: bytes, data: bytes) -> bytes:
    """`content` with some bytes in another's place: where, how many go, what comes."""
    where = int.from_bytes(data[:3], "little") % (len(content) + 1)
    gone = data[3] if len(data) > 3 else 1
    return content[:where] + data[4:] + content[where + gone :]


def artifacts(data: bytes, folder: Path) -> str:
    """Something saved: which, and what becomes of its bytes."""
    way = WAYS[data[0] % len(WAYS)]
    return way(data[1], data[2:], folder)


def _must_be_refused(changed: bool, load: Callable[[], Any]) -> str:
    load()
    assert not changed, "a changed byte was taken"
    return "right"


def _copy(folder: Path) -> Path:
    target = folder / "detector"
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(base().folder, target))


def _folder(which: int, data: bytes, folder: Path) -> str:
    target = _copy(folder)
    path = target / FILES[which % len(FILES)]
    before = path.read_bytes()
    path.write_bytes(spliced(before, data))
    changed = path.read_bytes() != before
    return _must_be_refused(changed, lambda: load_detector(target))


def _resealed_folder(which: int, data: bytes, folder: Path) -> str:
    target = _copy(folder)
    path = target / FILES[which % 3]
    path.write_bytes(spliced(path.read_bytes(), data))
    write_manifest(target)
    check_sound(load_detector(target))
    return "right"


def check_sound(found: Detector) -> None:
    """Consistency of a detector's parts."""
    entities, channels = len(found.entities) + 1, len(found.channels)
    assert channels and len(set(found.channels)) == channels
    assert all(isinstance(name, str) for name in (*found.channels, *found.entities))
    for name, least in (("window", 1), ("stride", 1), ("min_duration", 1)):
        assert type(getattr(found, name)) is int and getattr(found, name) >= least, name
    assert type(found.cooldown) is int and found.cooldown >= 0
    assert 0 <= found.allowed_points < found.window
    assert found.max_gap >= 0 and found.step >= 0
    for field in found.scalers:
        assert field.shape == (entities, channels) and np.isfinite(field).all()
    assert (found.scalers.scale > 0).all()
    errors = found.gaussians.mean.shape[-1]
    assert found.gaussians.mean.shape == (entities, errors)
    assert found.gaussians.whiten.shape == (entities, errors, errors)
    assert all(np.isfinite(field).all() for field in found.gaussians)
    assert len(found.thresholds) == entities
    assert not any(math.isnan(threshold.tau) for threshold in found.thresholds)
    assert isinstance(found.card, dict)


def _manifest(which: int, data: bytes, folder: Path) -> str:
    target = _copy(folder)
    before = (target / MANIFEST).read_bytes()
    (target / MANIFEST).write_bytes(data)
    return _must_be_refused(data != before, lambda: verify_manifest(target))


def _state(which: int, data: bytes, folder: Path) -> str:
    path, before = folder / "state", base().state
    path.write_bytes(spliced(before, data))
    return _must_be_refused(path.read_bytes() != before, lambda: load_state(path))


def _resealed_state(which: int, data: bytes, folder: Path) -> str:
    text = json.dumps(example_state(), sort_keys=True).encode()
    changed = spliced(text, data) if which & 1 else data
    digest = hashlib.sha256(changed).hexdigest().encode()
    path = folder / "state"
    path.write_bytes(b'{"sha256": "%s", "state": %s}\n' % (digest, changed))
    stream = plain_stream(0.1 if which & 2 else 0.0)
    _One(RowReader(stream.plan, {}), stream, state=path)
    kept = json.dumps(stream.state(), allow_nan=False)
    stream.update(
        [1.0, 2.0], None if not stream.last.clock else stream.last.value + 1e9
    )
    assert json.loads(kept)["rows"] + 1 == stream.rows
    return "right"


def _onnx(which: int, data: bytes, folder: Path) -> str:
    changed = spliced(base().onnx, data)
    return _must_be_refused(changed != base().onnx, lambda: load_onnx(changed))


def _stablehlo(which: int, data: bytes, folder: Path) -> str:
    changed = spliced(base().hlo, data)
    return _must_be_refused(changed != base().hlo, lambda: load_stablehlo(changed))


def _resealed_stablehlo(which: int, data: bytes, folder: Path) -> str:
    first = stablehlo.SEAL
    start = len(first) + 64
    # Most changes go into the header, which is Python's to read.
    stop = base().hlo.index(b"\n", start) if which & 1 else len(base().hlo)
    tail = spliced(base().hlo[start:stop], data) + base().hlo[stop:]
    found = load_stablehlo(sealed(first + b"0" * 64 + tail, first))
    plan_from_json(plan_to_json(found.plan))
    return "right"


def _plan(which: int, data: bytes, folder: Path) -> str:
    text = plan_to_json(plan_of(detector(), 0)).encode()
    text = spliced(text, data) if which & 1 else data
    plan = text.decode("utf-8", "replace")
    found = read_plan({"schema": "1", "plan": plan}, "the file")
    assert plan_from_json(plan_to_json(found)) == found
    assert 0 <= found.allowed_points < found.window and not math.isnan(found.tau)
    return "right"


def _records(which: int, data: bytes, folder: Path) -> str:
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    (work / RECORDS[which % len(RECORDS)]).write_bytes(data)
    try:
        check_settings(work, json.loads(to_json(get_config())))
    except ArtifactError:
        pass  # without its config.json it is no work directory
    lines = read_lines(work)
    assert all(line["phase"] + "" and line["step"] + 0 is not None for line in lines)
    cut_lines(work, "teacher", 3)
    check_data(work, {"train/a": "1"})
    read_results(work)
    return "right"


WAYS: tuple[Callable[[int, bytes, Path], str], ...] = (
    _folder,
    _resealed_folder,
    _manifest,
    _state,
    _resealed_state,
    _onnx,
    _stablehlo,
    _resealed_stablehlo,
    _plan,
    _records,
)
