"""Devices that share a batch or the members of a population.

XLA runs most of the arithmetic of an LSTM step on one core. With one CPU device per core,
and the batch split over the devices, all cores work (docs/performance.md). Results are the
same up to rounding: means over the batch are weighted.
"""

import contextlib
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from kdjax.errors import ConfigError
from kdjax.training import hosts

logger = logging.getLogger(__name__)

BATCH = "batch"
# Copied to all devices, and split along the first axis.
WHOLE, SPLIT = PartitionSpec(), PartitionSpec(BATCH)

# Splitting a batch into smaller shares costs more than it gains.
LEAST_SHARE = 16

Tree = TypeVar("Tree")


def use_all_cores() -> None:
    """Gives JAX one CPU device for each core that this process may use.

    Works only before JAX's first computation, and only if the number of CPU devices was
    not set before (`jax_num_cpu_devices`, or XLA's
    `xla_force_host_platform_device_count`). The program calls it; library users may.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or jax.config.jax_num_cpu_devices != -1:  # type: ignore[attr-defined]
        return
    try:
        jax.config.update("jax_num_cpu_devices", cores())
    except RuntimeError:
        logger.info("JAX has started already: the number of CPU devices is unchanged")


def keep_compiled() -> None:
    """Keeps compiled programs in `~/.cache/kdjax/xla`.

    Does nothing if the user has set a cache (`JAX_COMPILATION_CACHE_DIR`).
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "kdjax" / "xla"
    with contextlib.suppress(OSError):
        _drop_damaged(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Even small programs take a tenth of a second to compile.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def _drop_damaged(folder: Path) -> None:
    """Removes entries that a full disk or a kill truncated since the last check.

    JAX never rewrites them and would warn about each at every start.
    """
    checked = folder / ".checked"
    since = checked.stat().st_mtime if checked.exists() else 0.0
    for path in folder.glob("*-cache"):
        # One minute earlier, for entries that were being written at the last check.
        if path.stat().st_mtime < since - 60:
            continue
        entry = path.read_bytes()
        with contextlib.suppress(zlib.error):
            # Entries that don't start as zlib data were compressed otherwise.
            if entry[:1] not in (b"", b"\x78") or zlib.decompress(entry):
                continue
        path.unlink()
    if folder.is_dir():
        checked.touch()


def start_program(*, cpus: int | None = None) -> None:
    """Sets devices and cache, as a program may and a library may not.

    With `cpus` JAX has as many CPU devices and no other.
    """
    if cpus is None:
        use_all_cores()
    else:
        with contextlib.suppress(RuntimeError):  # JAX has started
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", cpus)
    keep_compiled()


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def batch_mesh(items: int, *, least_share: int = LEAST_SHARE) -> Mesh | None:
    """The most local devices with equal shares of `items`, at least `least_share` each.

    None if only one device would be left.
    """
    devices = jax.local_devices()
    most = min(len(devices), items // least_share)
    shares = [count for count in range(2, most + 1) if items % count == 0]
    return _mesh(devices[: shares[-1]]) if shares else None


def member_mesh(members: int) -> Mesh | None:
    """The local devices that share `members`, which need not be a multiple."""
    return batch_mesh(min(len(jax.local_devices()), members), least_share=1)


def training_mesh(batch_size: int) -> Mesh | None:
    """The devices that share a training batch: the same number of each process.

    ConfigError if the batch can't be divided equally among the processes.
    """
    count = hosts.processes()
    if count == 1:
        return batch_mesh(batch_size)
    if batch_size % count:
        raise ConfigError(
            f"train.batch_size={batch_size} is not a multiple of the {count} processes "
            "that share it: give a multiple."
        )
    own = batch_mesh(batch_size // count)
    each = own.size if own else 1
    everyone = [jax.local_devices(process_index=number) for number in range(count)]
    return _mesh([device for devices in everyone for device in devices[:each]])


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), (BATCH,), axis_types=(AxisType.Auto,))


def place(tree: Tree, mesh: Mesh | None) -> Tree:
    """Arrays copied to every device of the mesh; unchanged without a mesh.

    On several hosts each places its own copy; the copies must be equal.
    """
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, WHOLE)

    def copy(leaf: ArrayLike) -> Array:
        # `device_put` would compare the copies over the network, and NaN != NaN.
        values = np.asarray(leaf)
        return jax.make_array_from_callback(
            values.shape, sharding, lambda index: values[index]
        )

    local = sharding.is_fully_addressable
    return jax.device_put(tree, sharding) if local else jax.tree.map(copy, tree)


def divide(tree: Tree, mesh: Mesh | None) -> Tree:
    """Arrays `[B, …]` split over the devices of the mesh; unchanged without a mesh."""
    if mesh is None:
        return tree
    return jax.device_put(tree, NamedSharding(mesh, SPLIT))


def mean_over_batch(
    function: Callable[..., Tree], mesh: Mesh | None
) -> Callable[..., Tree]:
    """`function(common, items, weight)` computed by all devices of the mesh.

    It returns weighted means over the batch: of `items`, arrays `[B, …]`, by `weight`
    `[B]`; all devices get the pytree `common`.
    """
    if mesh is None:
        return function

    def share(common: Any, items: Any, weight: Array) -> Tree:
        own = jnp.sum(weight)
        part = own / jax.lax.psum(own, BATCH)
        means = function(common, items, weight)
        # A share that is all padding has no mean.
        weighted = jax.tree.map(lambda mean: jnp.where(own > 0, part * mean, 0), means)
        # As one array: on a network each sum costs a round trip.
        flat, restore = ravel_pytree(weighted)
        return restore(jax.lax.psum(flat, BATCH))

    return _shared(share, mesh, (WHOLE, SPLIT, SPLIT), WHOLE)


def map_over_batch(
    function: Callable[..., Tree], mesh: Mesh | None
) -> Callable[..., Tree]:
    """`function(common, items) -> [B, …]` with the items split over the devices."""
    return function if mesh is None else _shared(function, mesh, (WHOLE, SPLIT), SPLIT)


def _shared(
    function: Callable[..., Tree], mesh: Mesh, inputs: Any, outputs: Any
) -> Callable[..., Tree]:
    return jax.shard_map(
        function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False
    )
