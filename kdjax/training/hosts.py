"""The processes of one program on several hosts: who they are and what they tell.

`start` joins this process to the others through `jax.distributed`; without it a program
is alone, and everything here does nothing. All processes run the same program on the
same data. What only one may do, such as writing a log, the first does (`on_first`), and
what each has computed for itself, all get in the order of the processes (`gather`).

Every exchange carries its name and the fault of a process that can't go on
(`failing_together`), so that no process waits for one that has given up. A process that
dies is noticed by `jax.distributed`, which then ends the others; the environment's
KDJAX_HEARTBEAT_SECONDS is the time it takes (100, as in JAX; tests choose less). The
program is then started again on all hosts and goes on from its last checkpoint.

JAX is imported by what needs it, and asking who one is needs it only where it runs.
"""

import contextlib
import contextvars
import io
import json
import os
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from kdjax import errors
from kdjax.errors import ConfigError, KdjaxError

T = TypeVar("T")

# What `--coordinator` says where the cluster's environment knows the rest.
AUTO = "auto"
HEARTBEAT = "KDJAX_HEARTBEAT_SECONDS"

# Seconds in which the others must hear of a fault; they may hang in a computation.
_PATIENCE = 60.0
_WELL, _FAILED = 0, 1

# Set on an error that all processes raise or have heard of.
_KNOWN = "known_to_all"

_APART = contextvars.ContextVar("apart", default=False)


class OtherFailed(KdjaxError):
    """A fault of another process, which has told all."""


def start(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins this process to the others; before JAX's first computation.

    Args:
        coordinator: `HOST:PORT` of process 0, where it listens for the others; `auto`
            to take all from the cluster's environment (SLURM, GKE, TPU pods, Open MPI);
            empty to stay alone, whatever the environment says.
        num_processes: how many they are; needed with `HOST:PORT`.
        process_id: which one this is, from 0; needed with `HOST:PORT`.

    Raises:
        ConfigError: an argument is missing, superfluous or out of range; no cluster was
            found; the others can't be reached; their devices differ in number.
    """
    _check(coordinator, num_processes, process_id)
    if not coordinator:
        return
    import jax

    if jax.distributed.is_initialized():
        _check_same(num_processes, process_id)
        return
    place = {} if coordinator == AUTO else {"coordinator_address": coordinator}
    try:
        jax.distributed.initialize(
            num_processes=num_processes,
            process_id=process_id,
            heartbeat_timeout_seconds=_heartbeat(),
            shutdown_timeout_seconds=_heartbeat(),
            **place,  # type: ignore[arg-type]
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--coordinator={coordinator}: the processes can't be joined ({error}). "
            "Give HOST:PORT of process 0, reachable from all hosts, with "
            "--num_processes and --process_id; or `auto` within a cluster that JAX "
            "knows."
        ) from error
    _check_devices()


def process() -> int:
    """Which process this is, from 0; 0 when alone."""
    return _jax().process_index() if _joined() else 0


def processes() -> int:
    """How many processes run this program together; 1 when alone."""
    return _jax().process_count() if _joined() else 1


def is_first() -> bool:
    """Whether this process writes and shows what all have in common."""
    return process() == 0


def share(items: Sequence[T], first: int = 0) -> list[T]:
    """This process's share of items that are numbered from `first`: every n-th.

    Item i is process i mod n's.
    """
    return list(items[(process() - first) % processes() :: processes()])


@contextlib.contextmanager
def working_alone() -> Iterator[None]:
    """Within it this process is alone: for work that was shared out.

    What trains there uses this process's devices and writes its own checkpoints and its
    own log, so each process needs a work directory of its own.
    """
    token = _APART.set(True)
    try:
        yield
    finally:
        _APART.reset(token)


def barrier(name: str) -> None:
    """Waits until all processes are here."""
    if processes() > 1:
        _exchange(name, b"")


def gather(arrays: T) -> list[T]:
    """Every process's pytree of numpy arrays, in the order of the processes.

    Bit for bit, whatever their types and sizes; the pytrees have the same structure.
    """
    if processes() == 1:
        return [arrays]
    import jax

    leaves, structure = jax.tree.flatten(arrays)
    file = io.BytesIO()
    for leaf in leaves:
        np.save(file, np.asarray(leaf), allow_pickle=False)
    found = []
    for content in _exchange("gather", file.getvalue()):
        other = io.BytesIO(content)
        read = [np.load(other, allow_pickle=False) for _ in leaves]
        found.append(jax.tree.unflatten(structure, read))
    return found


def gather_texts(text: str) -> list[str]:
    """Every process's text, in the order of the processes."""
    if processes() == 1:
        return [text]
    return [content.decode() for content in _exchange("tell", text.encode())]


def on_first(work: Callable[[], T]) -> T:
    """What the first process's `work` returns, a JSON value, or raises, for all."""
    if processes() == 1:
        return work()
    answer: dict[str, Any] = {}
    fault: Exception | None = None
    if is_first():
        try:
            answer = {"value": work()}
        except Exception as error:  # noqa: BLE001 - all processes raise it below
            fault = error
            answer = {"error": _told(error)}
    content, *_ = _exchange("on_first", json.dumps(answer).encode())
    answer = json.loads(content)
    if fault is not None:
        raise _known(fault)
    if "error" in answer:
        raise _known(_heard(*answer["error"]))
    value: T = answer["value"]
    return value


def check_alike(what: str, text: str) -> None:
    """Refuses processes that differ in what must be the same for all.

    Args:
        what: names it, such as `settings`.
        text: what must be the same.

    Raises:
        ConfigError: on every process.
    """
    if processes() == 1:
        return
    digest = zlib.crc32(text.encode()), len(text)
    found = gather_texts(json.dumps([what, *digest]))
    others = [str(i) for i, other in enumerate(found) if other != found[0]]
    if others:
        raise _known(
            ConfigError(
                f"the {what} of process {', '.join(others)} are not those of process "
                "0: start the same command on all hosts, with the same files."
            )
        )


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """A fault of one process within it ends all, at their next exchange.

    One that comes while others compute together can't be told: they are ended by
    `jax.distributed` once this process has left.
    """
    try:
        yield
    except (KdjaxError, OSError) as error:
        if processes() > 1 and not getattr(error, _KNOWN, False):
            _announce(error)
        raise


class _Letter(NamedTuple):
    status: int
    name: int
    size: int


def _exchange(name: str, content: bytes, status: int = _WELL) -> list[bytes]:
    """Every process's content, in their order; all must ask by the same name."""
    from jax.experimental.multihost_utils import process_allgather

    letter = _Letter(status, zlib.crc32(name.encode()), len(content))
    letters = [
        _Letter(*map(int, row))
        for row in process_allgather(np.array(letter, np.uint32))
    ]
    # In powers of two: each size of sheet is compiled once.
    size = 1 << max(letter.size for letter in letters).bit_length()
    sheet = np.zeros(size, np.uint8)
    sheet[: len(content)] = np.frombuffer(content, np.uint8)
    sheets = process_allgather(sheet)
    contents = [
        row[: letter.size].tobytes()
        for row, letter in zip(sheets, letters, strict=True)
    ]
    if status == _WELL:
        _check_letters(name, letters, contents)
    return contents


def _check_letters(
    name: str, letters: Sequence[_Letter], contents: Sequence[bytes]
) -> None:
    for number, (letter, content) in enumerate(zip(letters, contents, strict=True)):
        if letter.status == _FAILED:
            raise _known(OtherFailed(f"process {number}: {content.decode()}"))
    if len({letter.name for letter in letters}) > 1:
        raise RuntimeError(f"the processes are not at the same place, here at {name}")


def _announce(error: Exception) -> None:
    """Tells the others, or leaves them to `jax.distributed` if they don't listen."""
    watchdog = threading.Timer(_PATIENCE, _leave, (error,))
    watchdog.daemon = True
    watchdog.start()
    with contextlib.suppress(Exception):
        _exchange("failed", str(error).encode(), _FAILED)
    watchdog.cancel()


def _leave(error: Exception) -> None:
    print(f"kdjax: {error}", file=sys.stderr, flush=True)
    os._exit(2)


def _known(error: Exception) -> Exception:
    setattr(error, _KNOWN, True)
    return error


def _told(error: Exception) -> tuple[str, str]:
    return type(error).__name__, str(error)


def _heard(kind: str, text: str) -> Exception:
    """The error that the first process raised, as far as it can be made from text."""
    if kind in ("DataError", "ConfigError", "ArtifactError"):
        found: Exception = getattr(errors, kind)(text)
        return found
    return OtherFailed(f"process 0: {text}")


def _jax() -> Any:
    return sys.modules["jax"]


def _joined() -> bool:
    if _APART.get() or "jax" not in sys.modules:
        return False
    return bool(_jax().distributed.is_initialized())


def _check(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    numbers = (num_processes, process_id)
    if coordinator in ("", AUTO):
        if numbers != (None, None):
            said = f"--coordinator={coordinator}" if coordinator else "no --coordinator"
            raise ConfigError(
                f"--num_processes={num_processes} and --process_id={process_id} belong "
                f"to --coordinator=HOST:PORT, got {said}: give all three, or neither "
                "number."
            )
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"--coordinator={coordinator} must be HOST:PORT of process 0, such as "
            "10.0.0.1:8476, or auto."
        )
    if num_processes is None or process_id is None:
        raise ConfigError(
            f"--coordinator={coordinator} needs --num_processes and --process_id, got "
            f"{num_processes} and {process_id}: give both on every host."
        )
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id={process_id} must be from 0 to --num_processes − 1, of "
            f"--num_processes={num_processes}: number the processes from 0."
        )


def _check_same(num_processes: int | None, process_id: int | None) -> None:
    """The processes are joined already, by this program or its user."""
    now = _jax().process_count(), _jax().process_index()
    asked = (num_processes, process_id)
    if asked not in ((None, None), now):
        raise ConfigError(
            f"jax.distributed runs already, as process {now[1]} of {now[0]}: leave out "
            "--coordinator, --num_processes and --process_id, or give the same."
        )


def _check_devices() -> None:
    """Devices of one process more than of another would leave some without work."""
    owners = [device.process_index for device in _jax().devices()]
    counts = [owners.count(number) for number in range(_jax().process_count())]
    if len(set(counts)) > 1:
        raise ConfigError(
            f"the processes have {', '.join(map(str, counts))} devices: give each the "
            "same number (for CPUs: XLA_FLAGS=--xla_force_host_platform_device_count=N)."
        )


def _heartbeat() -> int:
    text = os.environ.get(HEARTBEAT, "100")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{HEARTBEAT}={text} must be a whole number of seconds.")
    return int(text)
