"""Bytes, arrays and cells of files, and DataErrors that name file, row and column.

Rows and columns count from 1 in messages. Text files add the line that an editor shows.

A file's size is compared with the free memory before it is read: Linux kills a process
that needs more than is free.
"""

import contextlib
import gzip
import io
import math
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from kdjax.errors import DataError

# The remedy for text that needs more than the free memory.
IN_PIECES = "convert it to Parquet, which is read in pieces, or give it in parts"
_AGAIN = "copy or download the file again."
# What numpy raises for damaged headers and arrays.
_DAMAGE = (ValueError, TypeError, EOFError, SyntaxError, OverflowError, TokenError)
# AttributeError: a .npy file under the name .npz. RuntimeError: encrypted members.
_ZIP_DAMAGE = (BadZipFile, zlib.error, AttributeError, LookupError, RuntimeError)
# First bytes of files whose name is wrong, their kind and the remedy.
_KINDS = (
    (b"\x1f\x8b", "gzip", "add .gz to its name, or unpack it"),
    (
        b"PK\x03\x04",
        "a zip archive or an Excel workbook",
        "unpack it, or save it as CSV",
    ),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", "save it as CSV"),
    (b"PAR1", "Parquet", "rename it to end in .parquet"),
    (b"\x93NUMPY", "a NumPy array", "rename it to end in .npy"),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
)
_PIECE_BYTES = 16_000_000  # unpacked at once from a gzip file
_COVARIANCES = 4  # float64 matrices that exist at once while a Gaussian is fitted
# Files of a container: its memory limit, its statistics, and the entry of memory in use.
_GROUP = "/sys/fs/cgroup/memory"
_GROUPS = (
    (f"{_GROUP}.max", f"{_GROUP}.stat", "anon"),
    (f"{_GROUP}/memory.limit_in_bytes", f"{_GROUP}/memory.stat", "total_rss"),
)


Errors = tuple[type[Exception], ...]


class Place(NamedTuple):
    """The source of a table, for messages."""

    path: Path
    columns: tuple[str, ...]  # names of all its columns
    first_line: int = 0  # line of its first row in a text file; 0 for other files
    rows: np.ndarray | None = None  # [N] the file's row of each row, if they differ
    lines: np.ndarray | None = None  # [N] of each row of a file with blank lines


def where(place: Place, row: int, column: str = "") -> str:
    """File, row and column of a cell as text, `row` counted from 0.

    >>> where(Place(Path("a.csv"), ("cpu", "mem"), first_line=2), 3, "mem")
    "a.csv: row 4 (line 5), column 2 ('mem')"
    """
    row = row if place.rows is None else int(place.rows[row])
    text = f"{place.path}: row {row + 1}"
    if place.first_line:
        line = row + place.first_line if place.lines is None else place.lines[row]
        text += f" (line {line})"
    if column:
        text += f", column {place.columns.index(column) + 1} ({column!r})"
    return text


def others(count: int) -> str:
    """The number of cells with the same fault as text; empty for one."""
    return f" ({count} such cells in all)" if count > 1 else ""


@contextlib.contextmanager
def about(*paths: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the files' names to a DataError raised in the block, if it lacks them."""
    try:
        yield
    except DataError as error:
        named = [str(path) for path in paths if str(path)]
        if not named or any(name in str(error) for name in named):
            raise
        raise DataError(f"{' and '.join(named)}: {error}") from error


def as_array(values: Any) -> np.ndarray:
    """An array-like as a numpy array; masked cells become NaN.

    >>> as_array(np.ma.masked_equal([1.0, -999.0], -999))
    array([ 1., nan])
    """
    if isinstance(values, np.ma.MaskedArray):
        kind = np.promote_types(values.dtype, np.float16)  # integers have no NaN
        return np.asarray(np.ma.filled(values.astype(kind), np.nan))
    return np.asarray(values)


def to_rows(
    values: np.ndarray,
    place: Place,
    columns: Sequence[str] = (),
    *,
    missing: str = "error",
    dtype: Any = np.float32,
) -> np.ndarray:
    """`values` `[N, D]` as float32 or float64; DataError for a cell not finite in float32.

    `columns` are the names of the D columns, by default all columns of `place`. `mask`
    allows NaN.
    """
    columns = columns or place.columns
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(values, dtype=np.float32)
    # Checked after the cast: 1e39 is finite in float64 and infinite in float32.
    bad = np.isinf(cast) if missing == "mask" else ~np.isfinite(cast)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        value = values[row, column]
        problem = (
            f"{value:g} is beyond float32 (3.4e38); correct it or change the unit"
            if np.isfinite(value)
            else f"{value} is not a finite number; correct or fill it"
        )
        more = others(int(bad.sum()))
        raise DataError(f"{where(place, row, columns[column])}: {problem}{more}.")
    return cast if dtype == np.float32 else np.ascontiguousarray(values, dtype)


def to_labels(values: np.ndarray, place: Place, column: str) -> np.ndarray:
    """Labels `[N]` as bool; DataError for a label that is neither 0 nor 1."""
    bad = np.flatnonzero((values != 0) & (values != 1))
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{where(place, row, column)}: label {values[row]:g} is neither 0 (normal) "
            "nor 1 (anomaly); correct it."
        )
    return values.astype(bool)


@contextlib.contextmanager
def reading(
    path: Path, kind: str = "", damage: Errors = (), todo: str = _AGAIN
) -> Iterator[None]:
    """Turns errors of reading a file of a kind into DataErrors.

    `damage` are the errors of damaged content, besides OSErrors without a number.
    """
    damage = (*damage, OSError)
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: check the path.") from None
    except damage as error:
        if isinstance(error, OSError) and (error.errno is not None or not kind):
            raise unreadable(path, error) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path} is not a whole {kind} file ({reason}): {todo}"
        ) from None


def read_bytes(path: Path) -> bytes:
    """The content of a text file: `.gz` is unpacked, lines end in LF.

    A byte order mark and line ends at the end of the file are dropped.
    """
    with reading(path, "gzip", (EOFError, zlib.error)):
        check_room(path, path.stat().st_size, IN_PIECES)
        data = path.read_bytes()
        if path.suffix == ".gz" and data:
            if not data.startswith(b"\x1f\x8b"):
                check_content(path, data)
                raise DataError(
                    f"{path} is not gzip: remove .gz from its name, or {_AGAIN}"
                )
            pieces, size = [], 0
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                while piece := file.read(_PIECE_BYTES):
                    pieces.append(piece)
                    size += len(piece)
                    check_room(path, size, IN_PIECES)
            data = b"".join(pieces)
    data = data.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    data = data.rstrip(b"\n")
    if not data:
        raise DataError(f"{path} is empty: expected rows of numbers; {_AGAIN}")
    return data


def check_text(path: Path, data: bytes) -> None:
    """Raises DataError with the first line that is not UTF-8 text."""
    try:
        fault, at = "a NUL byte", data.find(b"\0")
        if at < 0:
            data.decode("utf-8")
            return
    except UnicodeDecodeError as error:
        fault, at = "bytes that are not UTF-8", error.start
    check_content(path, data)
    line = data[:at].count(b"\n") + 1
    raise DataError(f"{path}: line {line} holds {fault}; save the file as UTF-8 text.")


def content_kind(head: bytes) -> tuple[str, str]:
    """The kind of a file that is not UTF-8 text by its first bytes, and the remedy."""
    # UTF-16 may lack its byte order mark: then every second byte of ASCII names is 0.
    if b"\0\0" in (head[:4:2], head[1:4:2]):
        head = b"\xff\xfe"
    return next((known[1:] for known in _KINDS if head.startswith(known[0])), ("", ""))


def check_content(path: Path, head: bytes, *, own: str = "") -> None:
    """Raises DataError if a file begins as one of a known kind other than `own`."""
    kind, todo = content_kind(head)
    if kind not in ("", own):
        raise DataError(f"{path} holds {kind}, contrary to its name: {todo}.")


def unreadable(path: Path, error: OSError) -> DataError:
    """The DataError for a file that the system can't open or read."""
    reason = error.strerror or str(error)
    return DataError(f"{path} can't be read ({reason}): check path and permissions.")


def read_npy(path: Path) -> np.ndarray:
    """The array of a `.npy` file as a memory map.

    Header and file size are compared first: a header alone can claim terabytes.
    """
    with (
        reading(path, ".npy", _DAMAGE),
        warnings.catch_warnings(),
        path.open("rb") as file,
    ):
        # numpy warns about headers that Python 2 wrote, but reads them correctly.
        warnings.simplefilter("ignore", UserWarning)
        check_content(path, file.read(8), own="a NumPy array")
        file.seek(0)
        form = np.lib.format
        old = form.read_magic(file) == (1, 0)
        read = form.read_array_header_1_0 if old else form.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise DataError(
                f"{path} holds Python objects, which kdjax never unpickles: "
                "save a plain array, such as array.astype('float32')."
            )
        expected = file.tell() + math.prod(shape) * dtype.itemsize
        size = path.stat().st_size
        if size != expected:
            raise DataError(
                f"{path} has {size} bytes, but its header ({dtype} of shape {shape}) "
                f"needs {expected}: {_AGAIN}"
            )
        return np.load(path, mmap_mode="r", allow_pickle=False)


def read_npz(path: Path, name: str) -> np.ndarray:
    """The array `name` of a `.npz` file; other members are not read."""
    damage = (*_DAMAGE, *_ZIP_DAMAGE, MemoryError)
    # Opened here, since np.load doesn't close a damaged file.
    with reading(path, ".npz", damage), path.open("rb") as file:
        with np.load(file, allow_pickle=False) as archive:
            if f"{name}.npy" not in archive.zip.namelist():
                raise DataError(
                    f"{path} has no array {name!r}: expected the arrays train and test."
                )
            size = archive.zip.getinfo(f"{name}.npy").file_size
            check_room(path, size, "give a smaller array")
            array: np.ndarray = archive[name]
        if not isinstance(array, np.ndarray):  # numpy returns bytes otherwise
            raise TypeError(f"{name} is not an array")
        return array


def available_memory() -> float:
    """Free bytes of machine and container; infinite if unknown."""
    return min(_of_machine(), *(_of_group(*paths) for paths in _GROUPS))


def check_room(path: Path, needed: float, hint: str) -> None:
    """Raises DataError if a file needs more bytes than are free; `hint` is the remedy."""
    free = available_memory()
    if needed > free:
        raise DataError(
            f"{path} needs at least {needed / 1e9:.3g} GB of memory, and only "
            f"{free / 1e9:.3g} GB are free: {hint}."
        )


def check_width(channels: int) -> None:
    """Raises DataError if the covariances of so many channels exceed the memory."""
    needed, free = _COVARIANCES * 8.0 * channels**2, available_memory()
    if needed > free:
        raise DataError(
            f"{channels:,} channels need {needed / 1e9:.3g} GB of memory for the "
            f"covariances of their errors, and only {free / 1e9:.3g} GB are free: remove "
            "or merge channels, or split them among several detectors."
        )


def _of_machine() -> float:
    with contextlib.suppress(OSError, LookupError, ValueError):
        return 1024.0 * _entry("/proc/meminfo", "MemAvailable:")
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return math.inf


def _of_group(limit: str, statistics: str, taken: str) -> float:
    with contextlib.suppress(OSError, LookupError, ValueError):
        # Without a limit the file contains a word.
        return float(Path(limit).read_text("ascii")) - _entry(statistics, taken)
    return math.inf


def _entry(path: str, name: str) -> float:
    """The number after a name at the beginning of a line."""
    lines = (line.split() for line in Path(path).read_text("ascii").splitlines())
    return float({words[0]: words[1] for words in lines if len(words) > 1}[name])
