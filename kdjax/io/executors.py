"""Runs units of work in this process, or on the workers of a Ray cluster.

A unit is resumable and independent of the others. It has a name, plain data (numbers,
texts, lists, dicts, data frames) and a cost. Both executors yield an `Outcome` for each
unit when it ends. A unit that fails does not stop the others. A unit whose worker or node
died runs again on another one.

Only this module imports Ray (extra `ray`). Workers must see the same files under the
same paths, and have the same version of kdjax.
"""

import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kdjax.errors import ConfigError, KdjaxError, check_choice, one_line
from kdjax.io.files import kdjax_version

logger = logging.getLogger(__name__)

EXECUTORS = LOCAL, RAY = "local", "ray"
AUTO = "auto"  # the address of the cluster that this computer belongs to
# Attempts for a unit whose worker dies; after these it fails.
ATTEMPTS = 4
_CONNECT_SECONDS = 5.0
_WAITING = 2  # units that wait for each slot, to bound the memory of arguments
_LOOK_SECONDS = 5.0  # between checks of the cluster, while no unit ends
_PATIENCE = 60.0  # seconds without a node for any unit, before all fail
# The first bytes of an HTTP/2 client, with empty settings; Ray's head answers with its own.
_SETTINGS = b"\4"
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0" + _SETTINGS + b"\0\0\0\0\0"


class Unit(NamedTuple):
    """A unit of work."""

    name: str
    data: Any  # the argument of the function that does the work
    cost: float = 1.0  # relative to the others; the most expensive units start first


class Outcome(NamedTuple):
    """The result of a unit."""

    name: str
    value: Any  # what the function returned; None after an error
    error: str = ""  # the reason of a failure


class Resources(NamedTuple):
    """Of one unit on Ray; locally a unit has all cores and devices of the process."""

    cpus: int = 1
    gpus: float = 0.0


ONE_CORE = Resources()


def run_units(
    work: Callable[[Any], Any],
    units: Sequence[Unit],
    *,
    executor: str = LOCAL,
    address: str = "",
    resources: Resources = ONE_CORE,
) -> Iterator[Outcome]:
    """Does the work of all units; yields an outcome for each when it ends.

    Args:
        work: function of a module of kdjax, which takes the data of a unit.
        units: with distinct names.
        executor: `local` or `ray`.
        address: of Ray: `HOST:PORT` of a cluster's head, `auto` for the cluster that this
            computer belongs to; empty starts Ray on this computer.
        resources: cores and GPUs of a unit on Ray.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers at the address.
    """
    check_choice("executor", executor, EXECUTORS)
    if address and executor != RAY:
        raise ConfigError(
            f"--ray_address={address} needs --executor=ray, got {executor}."
        )
    if executor == LOCAL:
        return _run_local(work, units)
    ordered = sorted(units, key=lambda unit: -unit.cost)
    return _run_ray(work, ordered, address, resources)


@contextlib.contextmanager
def connected(
    executor: str = LOCAL, address: str = "", resources: Resources = ONE_CORE
) -> Iterator[Any]:
    """Keeps one connection to Ray for all `run_units` of the block.

    The arguments are those of `run_units`. Ray that was started for the block ends with it.
    """
    if executor == LOCAL:
        yield None
        return
    # Ray would send each caller's name and version to its developers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address:  # 20 by default, a second each, where something else answers
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "5")
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise ConfigError(
            "--executor=ray needs Ray: pip install 'kdjax[ray]', or use --executor=local."
        ) from None
    if ray.is_initialized():
        ours: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    else:
        ours = _session(ray, address)
    with ours:
        have = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for name, least in _wanted(resources).items():
            if (most := max(own.get(name, 0) for own in have)) < least:
                raise ConfigError(
                    f"a unit needs {least:g} {name}, but the cluster has {most:g} on one "
                    f"computer: lower --unit_{name.lower()}s."
                )
        yield ray


def _run_local(work: Callable[[Any], Any], units: Sequence[Unit]) -> Iterator[Outcome]:
    for unit in units:
        try:
            yield Outcome(unit.name, work(unit.data))
        except (KdjaxError, OSError) as error:
            yield Outcome(unit.name, None, one_line(error))


def _run_ray(
    work: Callable[[Any], Any],
    units: Sequence[Unit],
    address: str,
    resources: Resources,
) -> Iterator[Outcome]:
    with connected(RAY, address, resources) as ray:
        task = ray.remote(
            num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=ATTEMPTS - 1
        )(_remote_call(work.__module__, work.__qualname__, resources))
        waiting, running = list(units)[::-1], dict[Any, Unit]()
        unfit = set[str]()  # nodes without this kdjax
        seen = time.monotonic()  # last time with a node for any unit
        while waiting or running:
            slots = ray.cluster_resources().get("CPU", 1) // resources.cpus
            while waiting and len(running) < max(1, slots) * (1 + _WAITING):
                unit = waiting.pop()
                elsewhere = {"ray.io/node-id": f"!in({','.join(sorted(unfit))})"}
                options = {"label_selector": elsewhere} if unfit else {}
                running[task.options(**options).remote(unit.data)] = unit
            ended, _ = ray.wait([*running], timeout=_LOOK_SECONDS)
            if ended or _fit_nodes(ray, resources, unfit):
                seen = time.monotonic()
            elif time.monotonic() - seen > _PATIENCE:
                lost = "the cluster has no node left for it"
                for unit in [*running.values(), *waiting]:
                    yield Outcome(unit.name, None, lost)
                return
            for done in ended:
                unit = running.pop(done)
                value, error, node = _result(ray, done)
                if node and node not in unfit:
                    unfit.add(node)
                    logger.warning("%s", error)
                if node and _fit_nodes(ray, resources, unfit):
                    waiting.append(unit)
                else:
                    yield Outcome(unit.name, value, error)


def _result(ray: Any, done: Any) -> tuple[Any, str, str]:
    """The result of `_remote_call` for a unit, or the reason of a failure."""
    try:
        value, error, node = ray.get(done)
        return value, error, node
    except ray.exceptions.RayTaskError as failure:
        cause = failure.cause
        return None, f"its worker failed: {type(cause).__name__}: {one_line(cause)}", ""
    except ray.exceptions.RayError as failure:
        return None, f"its worker died {ATTEMPTS} times: {one_line(failure)}", ""


def _fit_nodes(ray: Any, resources: Resources, unfit: set[str]) -> list[str]:
    """The live nodes that can run a unit."""
    wanted = _wanted(resources)
    return [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"]
        and node["NodeID"] not in unfit
        and all(node["Resources"].get(k, 0) >= least for k, least in wanted.items())
    ]


def _wanted(resources: Resources) -> Mapping[str, float]:
    return {"CPU": resources.cpus, "GPU": resources.gpus}


def _remote_call(
    module: str, function: str, resources: Resources
) -> Callable[[Any], tuple[Any, str, str]]:
    """The task of a unit: result, error, and its node if that has another kdjax or none.

    Ray sends it as source; it imports kdjax itself, so that it can report a failure.
    """
    version, path = kdjax_version(), os.getcwd()
    cpus, gpus = resources

    def call(data: Any) -> tuple[Any, str, str]:
        import importlib
        import os
        import socket

        import ray

        place = f"the worker on {socket.gethostname()}"
        todo = f"install kdjax {version} there"
        node = str(ray.get_runtime_context().get_node_id())
        # JAX has not started: as many devices and threads as the unit has cores.
        flags, devices = os.environ.get("XLA_FLAGS", ""), "host_platform_device_count"
        if devices not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_force_{devices}={cpus}".strip()
        os.environ.setdefault("NPROC", str(cpus))
        if not gpus:
            os.environ.setdefault("JAX_PLATFORMS", "cpu")
        elif gpus < 1:
            share = f"{0.9 * gpus:.3f}"
            os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", share)
        try:
            files = importlib.import_module("kdjax.io.files")
            sharding = importlib.import_module("kdjax.training.sharding")
            errors = importlib.import_module("kdjax.errors")
            work = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            return None, f"{place} can't import kdjax ({error}): {todo}.", node
        if (found := files.kdjax_version()) != version:
            return None, f"{place} has kdjax {found}, not {version}: {todo}.", node
        if os.path.isdir(path):
            os.chdir(path)  # paths of the command line are relative to it
        sharding.start_program()
        try:
            return work(data), "", ""
        except (errors.KdjaxError, OSError) as error:
            return None, errors.one_line(error), ""

    return call


@contextlib.contextmanager
def _session(ray: Any, address: str) -> Iterator[None]:
    """Connected to a cluster, or to Ray that is started on this computer and ended."""
    # Ray's own messages are not for the user of this program: such as the last
    # lines of a dead node's log, for which it has no option.
    module = importlib.import_module("ray._private.worker")
    printing = getattr(module, "print_to_stdstream", None)
    try:
        _connect(ray, address)
        module.print_to_stdstream = lambda *_, **__: None  # type: ignore[attr-defined]
        yield
    finally:
        ray.shutdown()
        module.print_to_stdstream = printing  # type: ignore[attr-defined]


def _connect(ray: Any, address: str) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Ray itself would repeat a unit that runs out of memory for ever.
    os.environ.setdefault("RAY_task_oom_retries", str(ATTEMPTS - 1))
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if not address:
        options["include_dashboard"] = False
    elif address != AUTO and not _answers(address):
        raise _unreachable(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with _hushed():
            ray.init(address=address or "local", **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        if not address:
            raise ConfigError(
                f"Ray can't be started on this computer ({one_line(error)}): use "
                "--executor=local, or give --ray_address of a cluster."
            ) from error
        raise _unreachable(address) from None
    finally:
        # Ray's own handler would end the program without its last message.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without standard error, where Ray's C++ reports each attempt to connect."""
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _unreachable(address: str) -> ConfigError:
    return ConfigError(
        f"no Ray cluster answers at --ray_address={address}: start one "
        "(ray start --head), check host and port (and RAY_AUTH_MODE=token, if the "
        "cluster requires one), or remove the flag to start Ray on this computer."
    )


def _answers(address: str) -> bool:
    """Whether a server at `HOST:PORT` speaks HTTP/2, as Ray's does, within seconds.

    `ray.init` waits for minutes if a port is open and sends nothing.
    """
    host, _, port = address.rpartition(":")
    heard = list[bool]()

    def ask() -> None:
        with (
            contextlib.suppress(OSError, ValueError, OverflowError),
            socket.create_connection((host, int(port)), _CONNECT_SECONDS) as stream,
        ):
            if os.environ.get("RAY_USE_TLS", "0") in ("", "0"):
                stream.sendall(_HELLO)
                # The fourth byte of its settings is their type.
                heard.append(stream.recv(4, socket.MSG_WAITALL)[3:] == _SETTINGS)
            else:
                heard.append(True)  # such a server refuses unencrypted data

    # In a thread, since resolving a name has no time limit of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_CONNECT_SECONDS + 1)
    return any(heard)
