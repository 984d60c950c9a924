"""Bytes and arrays as they lie on disk, read whole or refused with a DataError."""

import gzip
import math
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from kdjax.errors import DataError

_AGAIN = "copy or download the file again."


def read_bytes(path: Path) -> bytes:
    """The content of a text file: unpacked if its name ends in `.gz`, lines end in LF.

    A byte order mark and line ends at the end of the file are dropped.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz" and data:
            data = gzip.decompress(data)
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


def read_npy(path: Path, *, mapped: bool = False) -> np.ndarray:
    """The array of a `.npy` file, once its header agrees with the size of the file.

    With `mapped` it stays on disk, read where it is looked at.

    A header alone can claim terabytes, so it is compared before anything is loaded.
    """
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
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: check the path.") from None
    except OSError as error:
        raise unreadable(path, error) from None


def read_npz(path: Path, name: str) -> np.ndarray:
    """The array `name` of a `.npz` file; other members are not touched."""
    try:
        # Opened here, since np.load leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            array: np.ndarray = archive[name]
            return array
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
    except (ValueError, EOFError, SyntaxError) as error:
        raise DataError(
            f"{path} is not a whole .npy file ({error}): {_AGAIN}"
        ) from None
    if dtype.hasobject:
        raise DataError(
            f"{path} holds Python objects, which kdjax never unpickles: "
            "save a plain array, such as array.astype('float32')."
        )
    return shape, dtype
