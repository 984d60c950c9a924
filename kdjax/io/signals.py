"""SIGTERM and SIGINT: save what there is to save, say so in a line, end within seconds.

A signal raises `Stopped` wherever the program is, and unfinished files are removed on the
way out. A training has more to save, and no moment within a step to do it: inside `held`
a signal is only noted, and the loop asks `noted` where its state is whole. Whatever takes
longer than `GRACE`, such as compiling a large network, is cut off as by a kill, which
every file that kdjax writes survives. So are imports, at once: compiled modules that are
interrupted in their beginning end the process by an abort.

The program (`kdjax.cli`) turns this on for its process; as a library kdjax leaves signals
alone.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

# Seconds from a signal to the end, however busy the program is. With what a busy machine
# adds they stay below 5.
GRACE = 3.5
SIGNALS = (signal.SIGTERM, signal.SIGINT)

# A progress bar has hidden it.
_SHOW_CURSOR = b"\x1b[?25h"

# The signal that came, the blocks that hold it back, and whether its line is out.
_came: list[int] = []
_holds: list[bool] = []
_said = threading.Event()


class Stopped(KeyboardInterrupt):
    """A signal asks the program to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def install_handlers() -> None:
    """From now on a signal ends this process by `Stopped`; for the main thread, once.

    One that whoever started the process wants ignored stays so. Where there are no such
    signals, Ctrl-C raises a KeyboardInterrupt as ever.
    """
    if os.name != "posix":
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # The signal itself writes to it, even while Python waits for a compiler.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    sys.unraisablehook = _again
    # The last thing to happen: Python's own end would let a signal change the exit code.
    atexit.register(_ignore)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _note)


def ignore_signals() -> None:
    """From now on signals change nothing: the process is about to end."""
    _said.set()
    _came.append(0)


@contextlib.contextmanager
def signals_held(wanted: bool = True) -> Iterator[None]:
    """Holds signals back: `Stopped` is raised at the end of the block at the latest.

    Args:
        wanted: without it the block is as any other.
    """
    if not wanted:
        yield
        return
    _holds.append(True)
    try:
        yield
    finally:
        _holds.pop()
    stop_if_requested()


def stop_requested() -> bool:
    """Whether a signal is held back."""
    return bool(_came and _holds)


def stop_if_requested() -> None:
    """Raises `Stopped` for a signal that was held back."""
    if _came:
        raise Stopped(_came[0])


def stop_message(error: BaseException) -> int | None:
    """Says in a line that the program stops, where a signal is the reason for an error.

    Returns:
        The exit code, 128 + the signal's number; None for another error.
    """
    if isinstance(error, Stopped):
        number = error.number
    elif isinstance(error, KeyboardInterrupt):
        number = signal.SIGINT
    elif _came:  # A library that was interrupted made another error of it.
        number = _came[0]
    else:
        return None
    if not _said.is_set():
        _said.set()
        print(_line(number), file=sys.stderr, flush=True)
    return 128 + number


def _line(number: int) -> str:
    why = "interrupted" if number == signal.SIGINT else "stopped by SIGTERM"
    return f"kdjax: {why}; the same command goes on from here"


def _note(number: int, frame: FrameType | None) -> None:
    """The handler; signals after the first one change nothing."""
    if _came:
        return
    _came.append(number)
    if _holds:
        return
    if _is_importing(frame):
        _leave(number)
    raise Stopped(number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _leave(number: int) -> NoReturn:
    """Ends the process here and now."""
    if not _said.is_set():
        os.write(2, f"{_line(number)}\n".encode())
    for terminal in filter(os.isatty, (1, 2)):
        os.write(terminal, _SHOW_CURSOR)
    os._exit(128 + number)


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _again(fault: Any) -> None:
    """Raises once more what was raised inside a callback, which can't end a program."""
    if not isinstance(fault.exc_value, Stopped):
        sys.__unraisablehook__(fault)
        return
    arguments = threading.main_thread().ident, fault.exc_value.number
    _came.clear()
    # To that thread, so that it wakes up where it waits.
    threading.Timer(0.01, signal.pthread_kill, arguments).start()


def _watch(reader: int) -> None:
    """Ends the process `GRACE` seconds after a signal if it hasn't ended by itself."""
    number = 0
    while number not in SIGNALS:
        number = os.read(reader, 1)[0]
    time.sleep(GRACE)
    _leave(number)
