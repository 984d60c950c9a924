"""Bytes and arrays as they lie on disk, read whole or refused with a DataError.

What memory is left, so that a file too large for it is refused before it is read.

Linux ends a process that takes more than there is without a word.
"""

import contextlib
import gzip
import io
import math
import os
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from kdjax.errors import DataError

_AGAIN = "copy or download the file again."
# What to do about text that is larger than the memory.
IN_PIECES = "convert it to Parquet, which is read in pieces, or give it in parts"
# Of a gzip file that is unpacked at once.
_PIECE_BYTES = 16_000_000


def read_bytes(path: Path) -> bytes:
    """The content of a text file: unpacked if its name ends in `.gz`, lines end in LF.

    A byte order mark and line ends at the end of the file are dropped.
    """
    try:
        check_room(path, path.stat().st_size, IN_PIECES)
        data = path.read_bytes()
        if path.suffix == ".gz" and data:
            data = _unpacked(path, data)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: check the path.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is not a whole gzip file ({error}): {_AGAIN}"
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    data = data.rstrip(b"\n")
    if not data:
        raise DataError(f"{path} is empty: expected rows of numbers; {_AGAIN}")
    return data


def _unpacked(path: Path, data: bytes) -> bytes:
    """The content of a gzip file, a thousand times its size at worst, if it has room."""
    taken, pieces = 0, []
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        while piece := file.read(_PIECE_BYTES):
            pieces.append(piece)
            taken += len(piece)
            check_room(path, taken, IN_PIECES)  # once more, to be joined
    return b"".join(pieces)


def check_text(path: Path, data: bytes) -> None:
    """Refuses what is not UTF-8 text, with the line where it stops being so."""
    hint = "save the file as UTF-8 text"
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise DataError(f"{path}: line {line} holds a NUL byte; {hint}.")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}: line {line} holds bytes that are not UTF-8; {hint}."
        ) from None


def check_kind(path: Path) -> None:
    """Refuses what can't be read from its beginning as often as need be."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise DataError(f"{path} can't be read (it is {what}): give one file.")


def read_npy(path: Path, *, mapped: bool = False) -> np.ndarray:
    """The array of a `.npy` file, once its header agrees with the size of the file.

    With `mapped` it stays on disk, read where it is looked at.

    A header alone can claim terabytes, so it is compared before anything is loaded.
    """
    with warnings.catch_warnings():
        # numpy mends headers that Python 2 wrote, which is no matter for users.
        warnings.simplefilter("ignore", UserWarning)
        return _read_npy(path, mapped)


def _read_npy(path: Path, mapped: bool) -> np.ndarray:
    try:
        with path.open("rb") as file:
            shape, dtype = _header(file, path)
            expected = file.tell() + math.prod(shape) * dtype.itemsize
        size = path.stat().st_size
        if size != expected:
            raise DataError(
                f"{path} has {size} bytes where its header, {dtype} of shape {shape}, "
                f"needs {expected}: {_AGAIN}"
            )
        mode: Literal["r"] | None = "r" if mapped else None
        array: np.ndarray = np.load(path, mmap_mode=mode, allow_pickle=False)
        return array
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: check the path.") from None
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, TypeError, OverflowError) as error:  # shapes that can't be
        raise _not_whole(path, error) from None


def read_npz(path: Path, name: str) -> np.ndarray:
    """The array `name` of a `.npz` file; other members are not touched."""
    try:
        # Opened here, since np.load leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            size = archive.zip.getinfo(f"{name}.npy").file_size
            check_room(path, size, "give an array that fits")
            array: np.ndarray = archive[name]
            if not isinstance(array, np.ndarray):  # what numpy makes of other bytes
                raise TypeError(f"{name} is no array")
            return array
    except DataError:
        raise
    except KeyError:
        raise DataError(
            f"{path} has no array {name!r}: expected the arrays train and test."
        ) from None
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        EOFError,
        OSError,
        MemoryError,
        RuntimeError,  # encrypted, or packed in an unknown way
        SyntaxError,
        tokenize.TokenError,  # both from a header
        AttributeError,  # a .npy under the name .npz is no context manager
        TypeError,
    ) as error:
        raise DataError(
            f"{path} is not a whole .npz file ({error}): {_AGAIN}"
        ) from None


def unreadable(path: Path, error: OSError) -> DataError:
    """The DataError for a file that the system refuses to hand out."""
    reason = error.strerror or str(error)
    return DataError(f"{path} can't be read ({reason}): check the path and its rights.")


def _not_whole(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is not a whole .npy file ({error}): {_AGAIN}")


def _header(file: BinaryIO, path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype from the header of a `.npy` file."""
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
    # The last two come from a header that numpy tries to mend, as Python 2's.
    except (ValueError, EOFError, SyntaxError, TypeError, tokenize.TokenError) as error:
        raise _not_whole(path, error) from None
    if dtype.hasobject:
        raise DataError(
            f"{path} holds Python objects, which kdjax never unpickles: "
            "save a plain array, such as array.astype('float32')."
        )
    return shape, dtype


# Where Linux keeps a container's limit, and the line of its statistics that tells what
# of it can't be given back: for both versions of its baseline groups.
_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.stat", "anon"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        "total_rss",
    ),
)
# Matrices of float64 that are there at once while a Gaussian is fitted.
_COVARIANCES = 4


def available_memory() -> float:
    """Bytes that can still be taken; infinite where the system doesn't tell."""
    return min(_of_machine(), *(_of_group(*paths) for paths in _GROUPS))


def check_room(path: Path, needed: float, hint: str) -> None:
    """Refuses a file whose content has no room in memory.

    Args:
        path: of the file.
        needed: bytes that it takes, at the least.
        hint: what to do.
    """
    free = available_memory()
    if needed > free:
        raise DataError(
            f"{path} takes {needed / 1e9:.3g} GB of memory or more, and {free / 1e9:.3g} "
            f"GB are free: {hint}."
        )


def check_width(channels: int) -> None:
    """Refuses more channels than leave room for the covariance of their errors."""
    needed, free = _COVARIANCES * 8.0 * channels**2, available_memory()
    if needed > free:
        raise DataError(
            f"{channels:,} channels take {needed / 1e9:.3g} GB of memory for the "
            f"covariances of their errors, and {free / 1e9:.3g} GB are free: leave out or "
            "join channels, or split them among several detectors."
        )


def _of_machine() -> float:
    with contextlib.suppress(OSError, LookupError, ValueError):
        return 1024.0 * _entry("/proc/meminfo", "MemAvailable:")
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return math.inf


def _of_group(limit: str, statistics: str, taken: str) -> float:
    with contextlib.suppress(OSError, LookupError, ValueError):
        # Without a limit it is a word.
        return float(Path(limit).read_text("ascii")) - _entry(statistics, taken)
    return math.inf


def _entry(path: str, name: str) -> float:
    """The number behind a name at the beginning of a line."""
    lines = (line.split() for line in Path(path).read_text("ascii").splitlines())
    return float({words[0]: words[1] for words in lines if len(words) > 1}[name])
