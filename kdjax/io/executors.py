"""Where units of work run: in this process, or on the workers of a Ray cluster.

A unit is resumable and independent of the others. It has a name, plain data (numbers,
texts, lists, dicts, data frames) and a cost. Both executors yield an `Outcome` for each
unit as it ends. A unit that fails does not stop the others; one whose worker or node
died runs again elsewhere.

Only this module imports Ray (extra `ray`). Workers must see the same files under the
same paths, and have the same version of kdjax.
"""

import contextlib
import functools
import importlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from kdjax.errors import ConfigError, KdjaxError, check_choice
from kdjax.io.files import kdjax_version

EXECUTORS = LOCAL, RAY = "local", "ray"
AUTO = "auto"  # the address of the cluster that this computer belongs to
# Runs of a unit whose worker dies; one that ends its worker each time is given up.
ATTEMPTS = 4
_CONNECT_SECONDS = 5.0
_WAITING = 2  # units that wait for each slot, so that arguments don't pile up


class Unit(NamedTuple):
    """A unit of work."""

    name: str
    data: Any  # the argument of the function that does the work
    cost: float = 1.0  # relative to the others; the dearest units start first


class Outcome(NamedTuple):
    """How a unit ended."""

    name: str
    value: Any  # what the function returned; None after an error
    error: str = ""  # why it failed


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
    """Does the work of all units; yields an outcome for each as it ends.

    Args:
        work: function of a module of kdjax, which takes the data of a unit.
        units: of distinct names.
        executor: `local` or `ray`.
        address: of Ray: `HOST:PORT` of a cluster's head, `auto` for the cluster that this
            computer belongs to; empty starts Ray on this computer.
        resources: cores and GPUs of a unit on Ray.

    Raises:
        ConfigError: Ray is not installed, or nobody answers at the address.
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


def _run_local(work: Callable[[Any], Any], units: Sequence[Unit]) -> Iterator[Outcome]:
    for unit in units:
        try:
            yield Outcome(unit.name, work(unit.data))
        except (KdjaxError, OSError) as error:
            yield Outcome(unit.name, None, _line(error))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _run_ray(
    work: Callable[[Any], Any],
    units: Sequence[Unit],
    address: str,
    resources: Resources,
) -> Iterator[Outcome]:
    with _cluster(address, resources) as ray:
        remote = ray.remote(
            num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=ATTEMPTS - 1
        )(_remote_call(work.__module__, work.__qualname__, resources.cpus))
        slots = max(1, int(ray.cluster_resources().get("CPU", 1) // resources.cpus))
        waiting, running = list(units)[::-1], dict[Any, str]()
        while waiting or running:
            while waiting and len(running) < slots * (1 + _WAITING):
                unit = waiting.pop()
                running[remote.remote(unit.data)] = unit.name
            (done, *_), _ = ray.wait([*running])
            name = running.pop(done)
            try:
                value, error = ray.get(done)
            except ray.exceptions.RayTaskError as failure:
                value, error = None, f"its worker failed: {_line(failure.cause)}"
            except ray.exceptions.RayError as failure:
                value, error = (
                    None,
                    f"its worker died {ATTEMPTS} times: {_line(failure)}",
                )
            yield Outcome(name, value, error)


def _remote_call(module: str, function: str, cpus: int) -> Callable[[Any], Any]:
    """The task of a unit; it imports kdjax itself, so that it can say if that fails."""
    version, path = kdjax_version(), os.getcwd()

    def call(data: Any) -> tuple[Any, str]:
        import importlib
        import os
        import socket

        place = f"the worker on {socket.gethostname()}"
        todo = f"install kdjax {version} there"
        os.environ.setdefault(
            "XLA_FLAGS", f"--xla_force_host_platform_device_count={cpus}"
        )
        try:
            files = importlib.import_module("kdjax.io.files")
            sharding = importlib.import_module("kdjax.training.sharding")
            errors = importlib.import_module("kdjax.errors")
            work = getattr(importlib.import_module(module), function)
        except ImportError as error:
            return None, f"{place} can't import kdjax ({error}): {todo}."
        if (found := files.kdjax_version()) != version:
            return None, f"{place} has kdjax {found}, not {version}: {todo}."
        if os.path.isdir(path):
            os.chdir(path)  # paths of the command line are relative to it
        sharding.start_program()
        try:
            return work(data), ""
        except (errors.KdjaxError, OSError) as error:
            return None, " ".join(str(error).split())

    return call


@contextlib.contextmanager
def _cluster(address: str, resources: Resources) -> Iterator[Any]:
    """Ray, connected to a cluster, or started on this computer and ended with the block."""
    # Ray would send each caller's name and version to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise ConfigError(
            "--executor=ray needs Ray: pip install 'kdjax[ray]', or use --executor=local."
        ) from None
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address)
    try:
        have = ray.cluster_resources()
        wanted = {"CPU": resources.cpus, "GPU": resources.gpus}
        for name, least in wanted.items():
            if have.get(name, 0) < least:
                raise ConfigError(
                    f"a unit needs {least:g} {name}, and the cluster has "
                    f"{have.get(name, 0):g}: set --unit_{name.lower()}s lower."
                )
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": False,
    }
    if not address:
        ray.init(include_dashboard=False, **options)
        return
    unreachable = functools.partial(
        ConfigError,
        f"no Ray cluster answers at --ray_address={address}: start one "
        "(ray start --head), check host and port, or leave the flag out to start Ray on "
        "this computer.",
    )
    if address != AUTO:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        except (OSError, ValueError, OverflowError):
            raise unreachable() from None
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError):
        raise unreachable() from None
