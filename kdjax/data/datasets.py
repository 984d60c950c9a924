"""The public benchmark data sets, read from the layouts in which they are published.

SMD (OmniAnomaly, KDD 2019), ASD (InterFusion, KDD 2021), JumpStarter's second data set
(USENIX ATC 2021), SMAP and MSL (Hundman et al., KDD 2018). One machine of SMD comes with
the package.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdjax.data import nasa
from kdjax.data.cells import Place, read_matrix, to_labels
from kdjax.data.raw import read_bytes
from kdjax.data.series import Dataset, Series
from kdjax.errors import ConfigError, DataError

# Not in the release; given by its author in issue 22 of the OmniAnomaly repository.
_SMD_NAMES = """
cpu_r load_1 load_5 load_15 mem_shmem mem_u mem_u_e total_mem disk_q disk_r disk_rb
disk_svc disk_u disk_w disk_wa disk_wb si so eth1_fi eth1_fo eth1_pi eth1_po tcp_tw tcp_use
active_opens curr_estab in_errs in_segs listen_overflows out_rsts out_segs passive_opens
retransegs tcp_timeouts udp_in_dg udp_out_dg udp_rcv_buf_errs udp_snd_buf_errs
"""
SMD_CHANNELS = tuple(_SMD_NAMES.split())
_METRICS = tuple(f"metric_{i}" for i in range(1, 20))


class _Layout(NamedTuple):
    """Files `train/PREFIX*SUFFIX`, `test/…` and `test_label/…`, plain or gzipped."""

    prefix: str
    suffix: str
    channels: tuple[str, ...]


_TEXT = {
    "smd": _Layout("machine-", ".txt", SMD_CHANNELS),
    "asd": _Layout("omi-", ".txt", _METRICS),
    "jumpstarter2": _Layout("service", ".csv", _METRICS),
}
_FOLDERS = ("train", "test", "test_label")
BENCHMARKS = (*_TEXT, *nasa.CHANNELS)


class Culprits(NamedTuple):
    """One anomalous segment and the channels at fault.

    Attributes:
        start: first test row of the segment.
        stop: row after its last.
        channels: columns at fault, counted from 0.
    """

    start: int
    stop: int
    channels: tuple[int, ...]


def load_benchmark(
    name: str, *, root: str | Path, entities: Sequence[str] = ()
) -> Dataset:
    """The benchmark `name` as published under the folder `root`.

    Args:
        name: one of `BENCHMARKS`.
        root: folder of the data set; empty for the machine of SMD in the package.
        entities: names of the entities wanted, in this order; all where empty.
    """
    _check_name(name)
    folder = _folder(name, root)
    if name in nasa.CHANNELS:
        present = nasa.find_entities(name, folder)
    else:
        present = _find_entities(name, folder)
    wanted = _select(name, folder, sorted(present, key=_natural), entities)
    read = nasa.read_entity if name in nasa.CHANNELS else _read_entity
    pairs = [read(name, folder, entity) for entity in wanted]
    return Dataset(name, tuple(a for a, _ in pairs), tuple(b for _, b in pairs))


def load_sample() -> Dataset:
    """The machine of SMD that comes with the package: 23,694 rows each way, D = 38."""
    return load_benchmark("smd", root="")


def width(name: str) -> int:
    """D of a benchmark, known without its data.

    >>> [width(name) for name in BENCHMARKS]
    [38, 19, 19, 25, 55]
    """
    _check_name(name)
    if name in nasa.CHANNELS:
        return len(nasa.CHANNELS[name])
    return len(_TEXT[name].channels)


def interpretation(root: str | Path, entity: str) -> list[Culprits]:
    """The published segments of an SMD or ASD entity with the channels at fault.

    SMD's segments end before the row named last, ASD's with it: so their labels say.
    """
    name = "asd" if entity.startswith(_TEXT["asd"].prefix) else "smd"
    folder = _folder(name, root) / "interpretation_label"
    path = folder / f"{entity}.txt"
    text = read_bytes(path).decode("utf-8", errors="replace")
    last = 1 if name == "asd" else 0
    segments = []
    for number, line in enumerate(text.split("\n"), start=1):
        match = re.fullmatch(r"\s*(\d+)-(\d+):(\d+(?:,\d+)*)\s*", line)
        if match is None:
            raise DataError(
                f"{path}: line {number} {line!r} is not 'start-end:dim,dim,...'; "
                "copy or download the file again."
            )
        start, stop, dims = match.groups()
        channels = tuple(int(dim) - 1 for dim in dims.split(","))
        segments.append(Culprits(int(start), int(stop) + last, channels))
    return segments


def _check_name(name: str) -> None:
    if name not in BENCHMARKS:
        raise ConfigError(
            f"{name!r} is not a known benchmark{_suggest(name, BENCHMARKS)}: "
            f"use one of {', '.join(BENCHMARKS)}."
        )


def _suggest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _folder(name: str, root: str | Path) -> Path:
    """The folder that holds the sets of the benchmark."""
    if not str(root):
        if name != "smd":
            raise ConfigError(
                f"data.root is empty: give the folder that holds {name}; only a machine "
                "of smd comes with the package."
            )
        return Path(str(resources.files("kdjax.data"))) / "sample"
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder{_layout_hint(name)}")
    below = folder / "ServerMachineDataset"
    if name == "smd" and below.is_dir() and not (folder / "train").is_dir():
        return below
    return folder


def _layout_hint(name: str) -> str:
    """What was expected under the root, as the end of a message."""
    if name in nasa.CHANNELS:
        return f": expected {nasa.LAYOUT}."
    layout = _TEXT[name]
    file = f"{layout.prefix}*{layout.suffix}"
    expected = ", ".join(f"{folder}/{file}" for folder in _FOLDERS)
    fetch = " `kdjax fetch smd` downloads them." if name == "smd" else ""
    return f": expected {expected} (or .gz of them).{fetch}"


def _select(
    name: str, folder: Path, present: list[str], entities: Sequence[str]
) -> list[str]:
    if not present:
        raise DataError(f"{folder} holds no entity of {name}{_layout_hint(name)}")
    for entity in entities:
        if entity not in present:
            raise DataError(
                f"{folder} has no entity {entity!r}{_suggest(entity, present)}: "
                f"present are {', '.join(present)}."
            )
    if len(set(entities)) < len(entities):
        raise DataError(
            f"Entities are named twice in {', '.join(entities)}: name each once."
        )
    return list(entities) or present


def _natural(entity: str) -> list[str | int]:
    """A key that sorts machine-1-2 before machine-1-10."""
    parts = re.split(r"(\d+)", entity)
    return [int(part) if part.isdigit() else part for part in parts]


def _find_entities(name: str, folder: Path) -> set[str]:
    """Entities of which any file is there, so that a missing one gets noticed."""
    layout = _TEXT[name]
    names = set()
    for below in _FOLDERS:
        for path in (folder / below).glob(f"{layout.prefix}*"):
            stem = path.name.removesuffix(".gz")
            if stem.endswith(layout.suffix):
                names.add(stem.removesuffix(layout.suffix))
    return names


def _read_entity(name: str, folder: Path, entity: str) -> tuple[Series, Series]:
    channels = _TEXT[name].channels
    train = read_matrix(_file(name, folder / "train", entity), channels)
    test_path = _file(name, folder / "test", entity)
    test = read_matrix(test_path, channels)
    label_path = _file(name, folder / "test_label", entity)
    labels = _read_labels(label_path)
    if len(labels) != len(test):
        raise DataError(
            f"{label_path} has {len(labels)} labels, but {test_path} has {len(test)} "
            "rows: expected one label a row; copy or download both again."
        )
    return (
        Series(entity, train, channels),
        Series(entity, test, channels, labels=labels),
    )


def _read_labels(path: Path) -> np.ndarray:
    values = read_matrix(path, ("label",))[:, 0]
    return to_labels(values, Place(path, ("label",), first_line=1), "label")


def _file(name: str, folder: Path, entity: str) -> Path:
    """The plain file of a set, or its gzip."""
    plain = folder / f"{entity}{_TEXT[name].suffix}"
    packed = plain.with_name(f"{plain.name}.gz")
    for path in (plain, packed):
        if path.is_file():
            return path
    fetch = "; `kdjax fetch smd` downloads it" if name == "smd" else ""
    raise DataError(
        f"{plain} (or .gz) is missing: {entity} needs a file in each of "
        f"{', '.join(_FOLDERS)}{fetch}."
    )
