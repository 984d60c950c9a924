"""Readers of the public benchmark data sets in the layouts in which they are published.

SMD (OmniAnomaly, KDD 2019), ASD (InterFusion, KDD 2021), JumpStarter's second data set
(USENIX ATC 2021), SMAP and MSL (Hundman et al., KDD 2018: NASA's telemetry channels, each
an entity with commands). The package contains one machine of SMD.
"""

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data.raw import Place, read_npy, read_npz, to_labels, to_rows
from kdjax.data.readers import load_files
from kdjax.data.schema import Advice, Reading, parse_numbers
from kdjax.data.series import Dataset, Series
from kdjax.data.tables import numbered_channels, open_table
from kdjax.errors import ConfigError, DataError, counted, did_you_mean

# Not in the release; its author lists them in issue 22 of the OmniAnomaly repository.
_SMD_NAMES = """
cpu_r load_1 load_5 load_15 mem_shmem mem_u mem_u_e total_mem disk_q disk_r disk_rb
disk_svc disk_u disk_w disk_wa disk_wb si so eth1_fi eth1_fo eth1_pi eth1_po tcp_tw tcp_use
active_opens curr_estab in_errs in_segs listen_overflows out_rsts out_segs passive_opens
retransegs tcp_timeouts udp_in_dg udp_out_dg udp_rcv_buf_errs udp_snd_buf_errs
"""
SMD_CHANNELS = tuple(_SMD_NAMES.split())
_METRICS = tuple(f"metric_{i}" for i in range(1, 20))
# Beginning and ending of the files `train/PREFIX*SUFFIX`, `test/…` and `test_label/…`,
# plain or gzipped.
_TEXT = {
    "smd": ("machine-", ".txt"),
    "asd": ("omi-", ".txt"),
    "jumpstarter2": ("service", ".csv"),
}
_FOLDERS = ("train", "test", "test_label")
_CHANNELS = {
    "smd": SMD_CHANNELS,
    "asd": _METRICS,
    "jumpstarter2": _METRICS,
    "smap": ("telemetry", *(f"command_{i}" for i in range(1, 25))),
    "msl": ("telemetry", *(f"command_{i}" for i in range(1, 55))),
}
BENCHMARKS = tuple(_CHANNELS)
_NASA_TABLE = "labeled_anomalies.csv"
_NASA_COLUMNS = ("chan_id", "spacecraft", "anomaly_sequences", "num_values")
_NASA_LAYOUT = (
    "labeled_anomalies.csv next to channels/ID.npz, or next to train/ID.npy and "
    "test/ID.npy (also in data/)"
)
# Listed twice with different ranges. T-10 is not listed, so it has no labels.
_LEFT_OUT = ("P-2",)


def load_dataset(data: Mapping[str, Any]) -> Dataset:
    """The data set that the `data` group of a config names."""
    if data["name"]:
        return load_benchmark(
            data["name"], root=data["root"], entities=tuple(data["entities"])
        )
    fields = {*Reading._fields, "test_path", "exclude", "memory_bytes"} & data.keys()
    limit = data["fill_limit"] or data["window"]
    options = {field: data[field] for field in fields} | {"fill_limit": limit}
    return load_files(data["path"], **options)


def load_benchmark(
    name: str, *, root: str | Path, entities: Sequence[str] = ()
) -> Dataset:
    """The benchmark `name` as published under the folder `root`.

    Args:
        name: one of `BENCHMARKS`.
        root: folder of the data set; empty for the machine of SMD in the package.
        entities: names of the entities wanted, in this order; by default all.

    >>> load_benchmark("smd", root="").test[0].entity
    'machine-1-2'
    """
    channels, folder = _channels(name), benchmark_folder(name, root)
    find, read = (
        (_find_entities, _read_entity)
        if name in _TEXT
        else (_nasa_entities, _read_nasa_entity)
    )
    present = sorted(find(name, folder), key=_natural)
    train, test = [], []
    for entity in _select(name, folder, present, entities):
        rows, test_rows, labels = read(name, folder, entity)
        train.append(Series(entity, rows, channels))
        test.append(Series(entity, test_rows, channels, labels=labels))
    return Dataset(name, tuple(train), tuple(test))


def load_sample() -> Dataset:
    """The machine of SMD in the package: 23,694 train and 23,694 test rows, D = 38.

    >>> load_sample().train[0].values.shape
    (23694, 38)
    """
    return load_benchmark("smd", root="")


def width(name: str) -> int:
    """D of a benchmark, without reading its data.

    >>> [width(name) for name in BENCHMARKS]
    [38, 19, 19, 25, 55]
    """
    return len(_channels(name))


def _channels(name: str) -> tuple[str, ...]:
    if name not in BENCHMARKS:
        raise ConfigError(
            f"{name!r} is not a known benchmark{did_you_mean(name, BENCHMARKS)}: "
            f"use one of {', '.join(BENCHMARKS)}."
        )
    return _CHANNELS[name]


def benchmark_folder(name: str, root: str | Path) -> Path:
    """The folder that holds the sets of the benchmark."""
    if not str(root):
        if name != "smd":
            raise ConfigError(
                f"data.root is empty: give the folder of {name}; the package contains "
                "only one machine, of smd."
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
    """The expected layout as the end of a message."""
    if name not in _TEXT:
        return f": expected {_NASA_LAYOUT}."
    expected = ", ".join(f"{folder}/{'*'.join(_TEXT[name])}" for folder in _FOLDERS)
    fetch = " `kdjax fetch smd` downloads them." if name == "smd" else ""
    return f": expected {expected} (or their .gz).{fetch}"


def _select(
    name: str, folder: Path, present: list[str], entities: Sequence[str]
) -> list[str]:
    if not present:
        raise DataError(f"{folder} has no entity of {name}{_layout_hint(name)}")
    for entity in entities:
        if entity not in present:
            raise DataError(
                f"{folder} has no entity {entity!r}{did_you_mean(entity, present)}: "
                f"it has {', '.join(present)}."
            )
    if len(set(entities)) < len(entities):
        raise DataError(
            f"data.entities={', '.join(entities)} repeats an entity: name each once."
        )
    return list(entities) or present


def _natural(entity: str) -> list[str | int]:
    """A key that sorts machine-1-2 before machine-1-10."""
    parts = re.split(r"(\d+)", entity)
    return [int(part) if part.isdigit() else part for part in parts]


def _find_entities(name: str, folder: Path) -> set[str]:
    """Entities with at least one file, so that a missing file is reported later."""
    prefix, suffix = _TEXT[name]
    names = {
        path.name.removesuffix(".gz")
        for below in _FOLDERS
        for path in (folder / below).glob(f"{prefix}*")
    }
    return {file.removesuffix(suffix) for file in names if file.endswith(suffix)}


def _read_entity(name: str, folder: Path, entity: str) -> tuple[np.ndarray, ...]:
    """Train rows, test rows and labels of the test rows."""
    channels = _CHANNELS[name]
    paths = [_file(name, folder / part, entity) for part in _FOLDERS]
    train, test = (_read_matrix(path, channels) for path in paths[:2])
    _, test_path, label_path = paths
    marks = _read_matrix(label_path, ("label",))[:, 0]
    labels = to_labels(marks, Place(label_path, ("label",), first_line=1), "label")
    if len(labels) != len(test):
        raise DataError(
            f"{label_path} has {len(labels)} labels, but {test_path} has {len(test)} "
            "rows: expected one label per row; copy or download both again."
        )
    return train, test, labels


def _read_matrix(path: Path, columns: tuple[str, ...]) -> np.ndarray:
    """Rows of a text file of numbers without header, `[N, D]` float32."""
    table = open_table(path)
    names, place = table.place.columns, table.place._replace(columns=columns)
    if names != numbered_channels(len(columns)):
        raise DataError(
            f"{path} has {counted(len(names), 'column')}, expected {len(columns)} of "
            "numbers without a header: copy or download it again."
        )
    frame, advice = table.read().set_axis(columns, axis=1), Advice("correct it")
    values = [parse_numbers(frame[name], place, advice) for name in columns]
    return to_rows(np.stack(values, axis=1), place)


def _file(name: str, folder: Path, entity: str) -> Path:
    """The plain file of a set, or its gzip."""
    plain = folder / f"{entity}{_TEXT[name][1]}"
    for path in (plain, plain.with_name(f"{plain.name}.gz")):
        if path.is_file():
            return path
    fetch = "; `kdjax fetch smd` downloads it" if name == "smd" else ""
    raise DataError(
        f"{plain} (or .gz) is missing: {entity} needs a file in each of "
        f"{', '.join(_FOLDERS)}{fetch}."
    )


def _nasa_entities(name: str, root: Path) -> set[str]:
    """Channels of the spacecraft that have both a line in the table and an array."""
    if not (root / _NASA_TABLE).is_file():
        raise DataError(f"{root / _NASA_TABLE} is missing: expected {_NASA_LAYOUT}.")
    return {
        entity
        for entity in _nasa_lines(name, root)
        if any(_nasa_path(root, part, entity).is_file() for part in ("train", "test"))
    }


def _read_nasa_entity(name: str, root: Path, entity: str) -> tuple[np.ndarray, ...]:
    channels = _CHANNELS[name]
    train, test = (_read_array(root, entity, p, channels) for p in ("train", "test"))
    number, row = _nasa_lines(name, root)[entity]
    place = f"{root / _NASA_TABLE}: line {number} (channel {entity})"
    try:
        ranges = json.loads(row["anomaly_sequences"])  # both ends included
        listed = int(row["num_values"])
        if not all(len(pair) == 2 and 0 <= pair[0] <= pair[1] for pair in ranges):
            raise ValueError("a range is not [first, last]")
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{place} can't be read ({error}): "
            "expected ranges such as [[2149, 2349]] and a number of rows."
        ) from None
    last = max((stop for _, stop in ranges), default=0)
    if listed != len(test) or last >= len(test):
        raise DataError(
            f"{place} lists {listed} rows with ranges up to row {last}, but test has "
            f"{len(test)} rows: download the table and the arrays again."
        )
    labels = np.zeros(len(test), bool)
    for start, stop in ranges:
        labels[start : stop + 1] = True
    return train, test, labels


def _nasa_lines(name: str, root: Path) -> dict[str, tuple[int, dict[Hashable, Any]]]:
    """Line number and cells of each channel of the spacecraft in the table."""
    path = root / _NASA_TABLE
    table = open_table(path, text_columns=_NASA_COLUMNS).read()
    missing = [column for column in _NASA_COLUMNS if column not in table.columns]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)}: download it again."
        )
    return {
        str(row["chan_id"]): (number, row)
        for number, row in enumerate(table.to_dict("records"), start=2)
        if row["spacecraft"] == name.upper() and row["chan_id"] not in _LEFT_OUT
    }


def _nasa_path(root: Path, part: str, entity: str) -> Path:
    """The file of an array; the original archive unpacks into `data/`."""
    packed, plain = root / "channels" / f"{entity}.npz", f"{part}/{entity}.npy"
    paths = (packed, root / "data" / plain, root / plain)
    return next((path for path in paths if path.is_file()), paths[-1])


def _read_array(
    root: Path, entity: str, part: str, channels: tuple[str, ...]
) -> np.ndarray:
    path = _nasa_path(root, part, entity)
    packed = path.suffix == ".npz"
    values = read_npz(path, part) if packed else np.array(read_npy(path))
    whole = values.ndim == 2 and values.shape[1] == len(channels) and len(values)
    if not whole or values.dtype.kind not in "fiub":
        raise DataError(
            f"{path}: {part} holds {values.dtype} of shape {values.shape}, expected rows "
            f"of {len(channels)} numbers: download it again."
        )
    return to_rows(values, Place(path, channels))
