"""The processes of one program on several hosts, and their communication.

`start` joins this process to the others through `jax.distributed`. Without it a program
runs as one process and every function here is trivial. All processes run the same program
on the same data; the first does what only one may do, such as writing a log (`on_first`).

Each exchange has a name and sends the error of a process that can't continue
(`failing_together`), so that no process waits for one that has stopped. When a process
dies, `jax.distributed` ends the others after KDJAX_HEARTBEAT_SECONDS (default 100). The
program is then started again on all hosts and resumes from its last checkpoint.

JAX is imported only when processes are joined.
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
from typing import Any, TypeVar

import numpy as np

from kdjax import errors
from kdjax.errors import ConfigError, KdjaxError

T = TypeVar("T")

AUTO = "auto"  # value of --coordinator if the cluster's environment describes the rest
HEARTBEAT = "KDJAX_HEARTBEAT_SECONDS"

# Seconds for the others to receive an error; they may be busy with a computation.
_PATIENCE = 60.0
_WELL, _FAILED = 0, 1

# Set on an error that all processes raise.
_KNOWN = "known_to_all"

_ALONE = contextvars.ContextVar("alone", default=False)


class OtherFailed(KdjaxError):
    """An error of another process."""


def start(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins this process to the others; call it before JAX's first computation.

    `coordinator` is `HOST:PORT` of process 0, which listens there, and needs the number
    of processes and that of this one, from 0; `auto` takes everything from the cluster's
    environment (SLURM, GKE, TPU pods, Open MPI); empty is for a single process.
    """
    _check_arguments(coordinator, num_processes, process_id)
    if not coordinator:
        return
    import jax

    if jax.distributed.is_initialized():
        now = jax.process_count(), jax.process_index()
        if (num_processes, process_id) not in ((None, None), now):
            raise ConfigError(
                f"jax.distributed runs already, as process {now[1]} of {now[0]}: remove "
                "--coordinator, --num_processes and --process_id, or give the same."
            )
        return
    try:
        jax.distributed.initialize(
            None if coordinator == AUTO else coordinator,
            num_processes=num_processes,
            process_id=process_id,
            heartbeat_timeout_seconds=_heartbeat(),
            shutdown_timeout_seconds=_heartbeat(),
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--coordinator={coordinator}: the processes can't be joined ({error}). "
            "Give HOST:PORT of process 0, reachable from all hosts, with --num_processes "
            "and --process_id; or `auto` on a cluster that JAX supports."
        ) from error
    # With unequal numbers of devices some would have no work.
    owners = [device.process_index for device in jax.devices()]
    counts = [owners.count(number) for number in range(jax.process_count())]
    if len(set(counts)) > 1:
        raise ConfigError(
            f"the processes have {', '.join(map(str, counts))} devices: give each the "
            "same number (for CPUs: XLA_FLAGS=--xla_force_host_platform_device_count=N)."
        )


def process() -> int:
    """Number of this process, from 0; 0 for a single one."""
    return _place()[0]


def processes() -> int:
    """Number of processes; 1 for a single one."""
    return _place()[1]


def _place() -> tuple[int, int]:
    jax = sys.modules.get("jax")
    if jax is None or _ALONE.get() or not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()


def is_first() -> bool:
    """Whether this process writes and prints the common output."""
    return process() == 0


def share(items: Sequence[T], first: int = 0) -> list[T]:
    """This process's share of items numbered from `first`: item i is process i mod n's."""
    return list(items[(process() - first) % processes() :: processes()])


@contextlib.contextmanager
def working_alone() -> Iterator[None]:
    """Inside this context the process counts as the only one.

    Training then uses this process's devices and writes checkpoints and a log of its own,
    so each process needs its own work directory.
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def barrier(name: str) -> None:
    """Waits until all processes have called it."""
    _exchange(name, b"")


def gather(arrays: T) -> list[T]:
    """Every process's pytree of numpy arrays, in the order of the processes.

    Bit-identical; types and sizes may differ, but not the structure.
    """
    if processes() == 1:
        return [arrays]
    import jax

    leaves, structure = jax.tree.flatten(arrays)
    file = io.BytesIO()
    for leaf in leaves:
        np.save(file, np.asarray(leaf), allow_pickle=False)
    files = map(io.BytesIO, _exchange("gather", file.getvalue()))
    return [
        jax.tree.unflatten(structure, [np.load(file) for _ in leaves]) for file in files
    ]


def gather_texts(text: str) -> list[str]:
    """Every process's text, in the order of the processes."""
    return [content.decode() for content in _exchange("texts", text.encode())]


def on_first(work: Callable[[], T]) -> T:
    """What `work` returns (a JSON value) or raises on the first process, on all."""
    if processes() == 1:
        return work()
    value: Any = None
    fault: Exception | None = None
    if is_first():
        try:
            value = work()
        except Exception as error:  # noqa: BLE001 - all processes raise it below
            fault = error
    said = [value, fault and type(fault).__name__, str(fault)]
    content, *_ = _exchange("on_first", json.dumps(said).encode())
    if fault is not None:
        raise _known(fault)
    found: T
    found, kind, text = json.loads(content)
    if kind in ("DataError", "ConfigError", "ArtifactError"):
        raise _known(getattr(errors, kind)(text))
    if kind is not None:
        raise _known(OtherFailed(f"process 0: {text}"))
    return found


def check_alike(what: str, text: str) -> None:
    """Raises ConfigError on every process if `text` differs; `what` is its name."""
    found = gather_texts(json.dumps([what, zlib.crc32(text.encode()), len(text)]))
    others = [str(i) for i, other in enumerate(found) if other != found[0]]
    if others:
        raise _known(
            ConfigError(
                f"the {what} of process {', '.join(others)} differ from those of process "
                "0: start the same command on all hosts, with the same files."
            )
        )


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Inside this context an error of one process ends all at their next exchange.

    During a common computation the others can't receive it; `jax.distributed` ends them
    after this process has exited.
    """
    try:
        yield
    except (KdjaxError, OSError) as error:
        if processes() > 1 and not getattr(error, _KNOWN, False):
            watchdog = threading.Timer(_PATIENCE, _leave, (error,))
            watchdog.daemon = True
            watchdog.start()
            with contextlib.suppress(Exception):
                _exchange("failed", str(error).encode(), _FAILED)
            watchdog.cancel()
        raise


def _leave(error: Exception) -> None:
    print(f"kdjax: {error}", file=sys.stderr, flush=True)
    os._exit(2)


def _exchange(name: str, content: bytes, status: int = _WELL) -> list[bytes]:
    """Every process's content, in their order; all must give the same name."""
    if processes() == 1:
        return [content]
    from jax.experimental.multihost_utils import process_allgather

    header = np.array((status, zlib.crc32(name.encode()), len(content)), np.uint32)
    headers = [tuple(map(int, row)) for row in process_allgather(header)]
    # Sizes are powers of two, so that few programs are compiled.
    sheet = np.zeros(1 << max(size for *_, size in headers).bit_length(), np.uint8)
    sheet[: len(content)] = np.frombuffer(content, np.uint8)
    sheets = process_allgather(sheet)
    contents = [
        row[:size].tobytes() for row, (*_, size) in zip(sheets, headers, strict=True)
    ]
    for number, (other, *_) in enumerate(headers):
        if other == _FAILED and status == _WELL:
            fault = contents[number].decode()
            raise _known(OtherFailed(f"process {number}: {fault}"))
    if status == _WELL and len({other for _, other, _ in headers}) > 1:
        raise RuntimeError(f"the processes are at different exchanges, here at {name}")
    return contents


def _known(error: Exception) -> Exception:
    setattr(error, _KNOWN, True)
    return error


def _check_arguments(
    coordinator: str, num_processes: int | None, process_id: int | None
) -> None:
    if coordinator in ("", AUTO):
        if (num_processes, process_id) == (None, None):
            return
        given = f"--coordinator={coordinator}" if coordinator else "no --coordinator"
        raise ConfigError(
            f"--num_processes={num_processes} and --process_id={process_id} need "
            f"--coordinator=HOST:PORT, got {given}: give all three, or neither number."
        )
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


def _heartbeat() -> int:
    text = os.environ.get(HEARTBEAT, "100")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{HEARTBEAT}={text} must be a whole number of seconds.")
    return int(text)
