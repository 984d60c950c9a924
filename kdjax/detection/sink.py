"""Where the answers of a stream go, and how a file of them is taken up again."""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from kdjax.errors import ArtifactError, KdjaxError


class Sink(NamedTuple):
    """A place for answers.

    Attributes:
        write: takes one line, which is there at once.
        mark: the path and how much of the file is safe; None if it is no file.
    """

    write: Callable[[str], None]
    mark: Callable[[], list[Any] | None]


def open_sink(
    stack: contextlib.ExitStack,
    output: TextIO | str | os.PathLike[str],
    saved: Mapping[str, Any],
) -> Sink:
    """Where answers go: to a text stream, or behind those that a file has.

    Args:
        stack: closes the file.
        output: the text stream, or the path of the file.
        saved: the state that tells how much of the file is to stay; empty without one.

    Raises:
        ArtifactError: the file can't be written, or isn't what the state says.
    """
    if not isinstance(output, (str, os.PathLike)):

        def say(text: str) -> None:
            output.write(text + "\n")
            output.flush()

        return Sink(say, lambda: None)
    path = Path(output).resolve()
    mode = "r+b" if path.exists() else "w+b"
    if mode == "w+b":
        stack.push(_removing(path))
    try:
        file = stack.enter_context(path.open(mode, buffering=0))
    except OSError as error:
        raise ArtifactError(
            f"{path} can't be written ({error}): check its rights, or give another file."
        ) from error
    size = file.seek(0, os.SEEK_END)
    name, length = saved.get("output") or (None, 0)
    if name == str(path):
        if size < length:
            raise ArtifactError(
                f"{path} has {size} bytes, {length} when the state was written: restore "
                "it, or remove the state to start anew."
            )
        file.truncate(length)
        file.seek(length)
    elif size:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            raise ArtifactError(
                f"{path} ends inside a line: complete it, or give another file."
            )

    def append(text: str) -> None:
        line = f"{text}\n".encode()
        while line:  # a full disk may take a part of it
            line = line[file.write(line) :]

    def mark() -> list[Any]:
        os.fsync(file.fileno())
        return [str(path), file.tell()]

    return Sink(append, mark)


def _removing(path: Path) -> Callable[..., None]:
    """The end of a stream into a new file: one without an answer goes with the fault."""

    def end(kind: type[BaseException] | None, *_: object) -> None:
        fault = kind is not None and issubclass(kind, KdjaxError)
        if fault and path.is_file() and not path.stat().st_size:
            path.unlink()

    return end
