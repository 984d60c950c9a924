"""Delivery of alarm messages: in order, in the background, each at least once.

A message is one line of JSON. Waiting messages are in a file, the spool. Each receiver has
a thread, and a place in the spool up to which it has accepted messages. A message is sent
after the state of its stream is saved, so that a stream that resumes from its state knows
of each message that was sent.
"""

import contextlib
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple, cast

from kdjax.errors import ArtifactError, ConfigError, KdjaxError, counted
from kdjax.io.files import check_target, kdjax_version
from kdjax.notify.brokers import SCHEMES, digest_of, read_broker, sender

WAYS = ("webhook", "command", "file")
TIMEOUT = 10.0  # seconds for one delivery
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between attempts; doubled each time
SAY_EVERY = 60.0  # seconds between two reports of one receiver
LAST_WAIT = 10.0  # most seconds to wait at the end without any delivery
NOTHING: Mapping[str, Any] = MappingProxyType({})
_HINT = (
    "give webhook:URL, command:PROGRAM, file:PATH, mqtt://HOST/TOPIC or "
    "kafka://BROKERS/TOPIC"
)
_TAIL = 300  # last bytes of a program's errors that are read
_FAILURES = (OSError, HTTPException, KdjaxError, ValueError)  # of a delivery


class RefusedError(KdjaxError):
    """A receiver has not accepted a message."""


class Receiver(NamedTuple):
    """A receiver of messages."""

    key: str  # its name in states: a digest, since addresses may contain secrets
    name: str  # for messages, without secrets
    # Delivers lines, of which a message is one; raises an error if one is refused.
    deliver: Callable[[bytes], None]


def receivers(
    texts: Iterable[str],
    *,
    inputs: Iterable[str | os.PathLike[str]] = (),
    flag: str = "on_alarm",
) -> tuple[Receiver, ...]:
    """Receivers by their texts, such as `file:alarms.jsonl`; commas separate several.

    `inputs` are files that must not be written to. ConfigError for another text.

    >>> [found.name for found in receivers(["webhook:http://host/key,command:true"])]
    ['webhook:http://host', 'command:true']
    """
    between = rf",(?=(?:{'|'.join(WAYS)}):|(?:{'|'.join(SCHEMES)})://)"
    parts = [part.strip() for text in texts for part in re.split(between, text)]
    files = [*inputs]
    parts = [*dict.fromkeys(filter(None, parts))]
    return tuple(_receiver(part, files, flag) for part in parts)


def _receiver(
    text: str, inputs: Iterable[str | os.PathLike[str]], flag: str
) -> Receiver:
    way, _, place = text.partition(":")
    if way in SCHEMES:
        broker = read_broker(text, flag=flag, known=("config",))
        return Receiver(digest_of(text), broker.name, sender(broker))
    if way not in WAYS or not place:
        raise ConfigError(f"{flag}={text!r} is not a receiver: {_HINT}.")
    key = digest_of(text)
    if way == "webhook":
        shown = _check_url(place, flag)
        return Receiver(key, f"webhook:{shown}", lambda message: _post(place, message))
    if way == "file":
        check_target(place, inputs=inputs, name=f"{flag}=file:")
        return Receiver(key, text, lambda message: _append(Path(place), message))
    try:
        words = shlex.split(place)
    except ValueError as error:
        raise ConfigError(f"{flag}={text!r}: {error}; close it.") from None
    program = shutil.which(words[0]) if words else None
    if program is None:
        raise ConfigError(
            f"{flag}={text!r} is not a program that can be run: check its path and "
            "permissions."
        )
    command = [program, *words[1:]]
    return Receiver(key, f"command:{words[0]}", lambda message: _run(command, message))


def _check_url(url: str, flag: str) -> str:
    """Scheme and host of a URL; ConfigError if nothing can be posted there."""
    try:
        parts = urllib.parse.urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname
        if not known or (parts.port is not None and not parts.port):
            raise ValueError("it is not an http or https URL")
        if re.search(r"[^\x21-\x7e]", url):
            raise ValueError("it has characters that a URL can't have")
        if "@" in parts.netloc:
            raise ValueError("it has a user: send its password by a command: instead")
    except ValueError as error:
        raise ConfigError(
            f"{flag}=webhook: can't post to this URL ({error}): give one such as "
            "https://host/path."
        ) from None
    return f"{parts.scheme}://{parts.netloc}"


def _post(url: str, message: bytes) -> None:
    """Posts to a webhook; raises for an answer other than 2xx, also a redirection."""
    opener = urllib.request.OpenerDirector()
    # Without the handlers of redirections, files and FTP that `build_opener` adds.
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),  # checks certificates
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    agent = f"kdjax/{kdjax_version()}"
    headers = {"Content-Type": "application/json", "User-Agent": agent}
    request = urllib.request.Request(url, message, headers, method="POST")
    answer = opener.open(request, timeout=TIMEOUT)
    if answer is not None:
        answer.close()


def _run(command: list[str], message: bytes) -> None:
    """Runs a program with the message as input; it must end with 0 and in time."""
    # Files instead of pipes: processes that the program leaves can't block the sender.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
        given.write(message)
        given.seek(0)
        process = subprocess.Popen(
            command,
            stdin=given,
            stdout=subprocess.DEVNULL,  # standard output has the stream's answers
            stderr=said,
            start_new_session=True,
        )
        try:
            code = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            if os.name == "posix":
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
            raise RefusedError(f"it did not end within {TIMEOUT:g} s") from None
        if code:
            size = said.seek(0, os.SEEK_END)
            said.seek(max(0, size - _TAIL))
            lines = said.read().decode("utf-8", "replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "")
            raise RefusedError(f"exit code {code}{last and f': {last.strip()}'}")


def _append(path: Path, message: bytes) -> None:
    """Appends a line; starts a new one after an incomplete line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            message = b"\n" * (file.read(1) != b"\n") + message
        file.write(message)
        file.flush()
        os.fsync(file.fileno())


class Outbox:
    """Sends messages to receivers, each in its own thread.

    Args:
        to: the receivers.
        spool: the file of waiting messages; None for a temporary one.
        saved: the `state` of an earlier run. Receivers that it doesn't know, such as after
            a correction of an address, get the messages that wait for others.
        log: called with messages for the user.

    Raises:
        ArtifactError: the spool can't be used, or isn't the one of the state.
    """

    def __init__(
        self,
        to: tuple[Receiver, ...],
        *,
        spool: Path | None = None,
        saved: Mapping[str, Any] = NOTHING,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        try:
            self._end = int(saved.get("length", 0))  # of the messages in the spool
            known = {key: int(place) for key, place in saved.get("taken", {}).items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"the state was not written by `stream` ({error}): remove it to start again."
            ) from error
        oldest = min(known.values(), default=0)
        self._taken = {one.key: known.get(one.key, oldest) for one in to}
        self._to, self._spool, self._log = to, spool, log
        self._file = _open_spool(spool, self._end)
        self._released = self._end  # messages up to here may be sent
        self._changed = threading.Condition()  # notifies the senders
        self._closing = False
        self._latest = time.monotonic()  # of the last accepted message
        for receiver in to:
            threading.Thread(target=self._send, args=(receiver,), daemon=True).start()

    def add(self, messages: Iterable[str]) -> None:
        """Puts messages into the spool; they are sent after the next `release`."""
        data = "".join(f"{message}\n" for message in messages).encode()
        with self._changed:
            try:
                self._file.seek(self._end)
                rest = data
                while rest:  # a full disk may take a part of it
                    rest = rest[self._file.write(rest) :]
            except OSError as error:
                raise ArtifactError(
                    f"{self._spool or 'a temporary file'} can't store an alarm ({error}): "
                    "free disk space, then rerun the command."
                ) from error
            self._end += len(data)

    def state(self) -> dict[str, Any]:
        """The values that a later run needs besides the spool, as JSON values."""
        with self._changed:
            if self._is_empty():
                return {"length": 0, "taken": {}}
            if self._spool and self._released < self._end:
                os.fsync(self._file.fileno())
            return {"length": self._end, "taken": {**self._taken}}

    def release(self, state: Mapping[str, Any]) -> None:
        """Sends the messages that a saved `state` counts."""
        with self._changed:
            if not state["length"] and self._is_empty():
                self._file.truncate(0)
                self._end = self._released = 0
                self._taken = dict.fromkeys(self._taken, 0)
            self._released = max(self._released, state["length"])
            self._changed.notify_all()

    def drain(self, most: float = math.inf) -> None:
        """Waits at most `most` seconds for deliveries; reports undelivered messages.

        It waits no longer than `LAST_WAIT` after the last accepted one.
        """
        with self._changed:
            self._latest = time.monotonic()
            until = self._latest + most
            with contextlib.suppress(KeyboardInterrupt):  # a signal ends the wait
                while min(self._taken.values()) < self._released:
                    left = min(until, self._latest + LAST_WAIT) - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
            for receiver in self._to:
                if waiting := self._waiting(receiver):
                    fate = "sent again by the next run with this state"
                    self._log(
                        f"{receiver.name} did not accept {counted(waiting, 'alarm message')}: "
                        f"{fate if self._spool else 'lost, since there is no --state'}."
                    )

    def close(self) -> None:
        """Ends the threads, without waiting for a delivery, and closes the spool."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._file.close()

    def _is_empty(self) -> bool:
        return min(self._taken.values()) == self._end

    def _waiting(self, receiver: Receiver) -> int:
        self._file.seek(self._taken[receiver.key])
        return sum(
            chunk.count(b"\n") for chunk in iter(lambda: self._file.read(2**20), b"")
        )

    def _send(self, receiver: Receiver) -> None:
        """Sends messages in order; repeats each one until it is accepted."""
        key, pause, due = receiver.key, FIRST_PAUSE, 0.0
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closing or self._taken[key] < self._released
                )
                if self._closing:
                    return
                place = self._file.seek(self._taken[key])
                message = self._file.readline()
            try:
                receiver.deliver(message)
            except _FAILURES as error:
                with self._changed:
                    if time.monotonic() >= due and not self._closing:
                        due = time.monotonic() + SAY_EVERY
                        number = self._waiting(receiver)
                        waiting = counted(number, "alarm message")
                        self._log(
                            f"{receiver.name} did not accept an alarm ({error}); "
                            f"{waiting} wait{'s' * (number == 1)}; trying again."
                        )
                    self._changed.wait_for(lambda: self._closing, pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            with self._changed:
                self._taken[key] = place + len(message)
                self._latest = time.monotonic()
                self._changed.notify_all()


def _open_spool(path: Path | None, length: int) -> BinaryIO:
    """The spool, cut to the length in the state."""
    if path is None:
        return cast(BinaryIO, tempfile.TemporaryFile(buffering=0))
    try:
        file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        size = file.seek(0, os.SEEK_END)
        if size >= length:
            file.truncate(length)
            return cast(BinaryIO, file)
        file.close()
    except OSError as error:
        raise ArtifactError(f"{path} can't be used ({error}).") from error
    raise ArtifactError(
        f"{path} has {size} bytes of alarm messages, but {length} when the state was "
        "written: restore it, or remove the state to start again."
    )
