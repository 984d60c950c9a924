"""SIGTERM and SIGINT: save the state, print one line, end within seconds.

A signal raises `Stopped` in the main thread, and `finally` blocks remove unfinished
files. Inside `signals_held` a signal is only recorded: the training loop checks
`stop_requested` between steps and writes a checkpoint first. A watch thread ends the
process after `GRACE` seconds if it is still busy, such as with compilation. A signal
during an import ends the process at once, since extension modules may abort when their
initialisation is interrupted.

Only the program (`kdjax.cli`) installs the handlers; the library doesn't change them.
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

GRACE = 3.5  # most seconds from a signal to the end of the process
SIGNALS = (signal.SIGTERM, signal.SIGINT)

_came: list[int] = []  # the first signal
_holds: list[bool] = []  # open `signals_held` blocks
_printed = threading.Event()


class Stopped(KeyboardInterrupt):
    """A signal of this number requests the end of the program."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def install_handlers() -> None:
    """Makes signals raise `Stopped`; call it once, in the main thread.

    Signals that the parent process ignores stay ignored. On systems other than POSIX Ctrl-C
    raises KeyboardInterrupt as usual.
    """
    if os.name != "posix":
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # The signal writes to the pipe even while Python waits for a compiler.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    sys.unraisablehook = _raise_again
    for number in SIGNALS:
        # Else a signal during Python's own shutdown would change the exit code.
        atexit.register(signal.signal, number, signal.SIG_IGN)
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)


def ignore_signals() -> None:
    """Makes further signals have no effect: the process is about to end."""
    _printed.set()
    _came.append(0)


@contextlib.contextmanager
def signals_held(wanted: bool = True) -> Iterator[None]:
    """Delays `Stopped` to the end of the block, unless `wanted` is False."""
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
    """Whether a signal came and is deferred."""
    return bool(_came and _holds)


def stop_if_requested() -> None:
    """Raises `Stopped` for a deferred signal."""
    if _came:
        raise Stopped(_came[0])


def stop_message(error: BaseException) -> int | None:
    """Prints one line if a signal caused `error`, and returns the exit code, else None."""
    if isinstance(error, KeyboardInterrupt):
        # A library may raise its own; without handlers it is Ctrl-C.
        number = _came[0] if _came else signal.SIGINT
    elif _came:  # A library turned the interruption into another error.
        number = _came[0]
    else:
        return None
    if not _printed.is_set():
        _printed.set()
        print(_line(number), file=sys.stderr, flush=True)
    return 128 + number


def _line(number: int) -> str:
    why = "interrupted" if number == signal.SIGINT else "stopped by SIGTERM"
    return f"kdjax: {why}; rerun the same command to resume"


def _handle(number: int, frame: FrameType | None) -> None:
    """The signal handler; signals after the first one have no effect."""
    if _came:
        return
    _came.append(number)
    if _holds:
        return
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _exit(number)
        frame = frame.f_back
    raise Stopped(number)


def _exit(number: int) -> NoReturn:
    if not _printed.is_set():
        os.write(2, f"{_line(number)}\n".encode())
    for terminal in filter(os.isatty, (1, 2)):
        os.write(terminal, b"\x1b[?25h")  # shows the cursor that a progress bar hid
    os._exit(128 + number)


def _raise_again(fault: Any) -> None:
    """Sends the signal again if a callback swallowed `Stopped`."""
    if not isinstance(fault.exc_value, Stopped):
        sys.__unraisablehook__(fault)
        return
    arguments = threading.main_thread().ident, fault.exc_value.number
    _came.clear()
    # To the main thread, so that a blocking call there wakes up.
    threading.Timer(0.01, signal.pthread_kill, arguments).start()


def _watch(reader: int) -> None:
    """Ends the process `GRACE` seconds after a signal."""
    number = 0
    while number not in SIGNALS:
        number = os.read(reader, 1)[0]
    time.sleep(GRACE)
    _exit(number)
