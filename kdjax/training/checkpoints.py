"""Checkpoints: orbax writes and reads them, a SHA-256 manifest says if they are whole.

Orbax restores flipped bits without a word and reports failed saves only when waited
for, so each save here waits, seals its folder with a manifest, and restoring takes the
newest step whose manifest verifies.

On several hosts all processes save and restore together: each writes its part, the first
seals the folder and says which step counts, and each reads what it needs, on whatever
number of processes and devices there are by then.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import checkpoint_manager, checkpoint_managers
from orbax.checkpoint.options import MultiprocessingOptions

from kdjax.errors import ArtifactError
from kdjax.io.files import (
    MANIFEST,
    check_schema,
    kdjax_version,
    verify_manifest,
    write_manifest,
    write_text,
)
from kdjax.training import hosts

logger = logging.getLogger(__name__)

ROOM = 1 << 20  # bytes of disk that a step takes beside its arrays, and to spare
KEPT = 2  # The newest, and one before it should the newest turn out damaged.

SCHEMA = 1
FORMAT = "kdjax.json"  # in a step's folder: its schema, and who wrote it

# Files of a step that one of several processes wrote by itself.
OWN = "arrays.npz"
OWN_META = "meta.json"


class Checkpoint(NamedTuple):
    """A restored step: its arrays, on one device, and its metadata as JSON text."""

    step: int
    arrays: Any
    meta: str


def save_checkpoint(directory: Path, step: int, arrays: Any, meta: str) -> None:
    """Writes one step below `directory` and waits until it is whole on disk.

    Arrays that lie on several processes' devices are written by all of them, each its
    part, into a folder that they share; all must call this. Others are this process's
    own, which writes them alone.

    Args:
        directory: the phase's folder of checkpoints.
        step: number of the step; the folder's name.
        arrays: any pytree of arrays.
        meta: JSON text of an object.
    """
    if any(_is_shared(leaf) for leaf in jax.tree.leaves(arrays)):
        _save(directory, step, arrays, meta)
        hosts.on_first(lambda: _seal(directory / str(step)))
        return
    save = _save if jax.process_count() == 1 else _save_own
    save(directory, step, arrays, meta)
    _seal(directory / str(step))


def _seal(folder: Path) -> None:
    said = {"schema": SCHEMA, "kdjax_version": kdjax_version()}
    write_text(folder / FORMAT, json.dumps(said) + "\n")
    write_manifest(folder)


def _is_shared(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _save(directory: Path, step: int, arrays: Any, meta: str) -> None:
    args = ocp.args.Composite(
        arrays=ocp.args.StandardSave(arrays),
        meta=ocp.args.JsonSave(json.loads(meta)),
    )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _check_room(directory, arrays)
        with (
            _quiet(),
            _manager(directory, MultiprocessingOptions(), cleanup=True) as manager,
        ):
            saved = manager.save(step, args=args, force=True)
            manager.wait_until_finished()
    except checkpoint_manager.StepAlreadyExistsError:
        saved = False
    except (OSError, ValueError) as error:
        raise _unsaved(directory, step, error) from error
    if not saved:
        raise _there_already(directory, step)


def _check_room(directory: Path, arrays: Any) -> None:
    """Refuses a full disk beforehand: on one, orbax's threads fill the screen."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    if shutil.disk_usage(directory).free < 2 * size + ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracebacks that orbax logs of a fault which it also raises."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _save_own(directory: Path, step: int, arrays: Any, meta: str) -> None:
    """As `_save`, for one of several processes: orbax lets only the first write."""
    folder = directory / str(step)
    leaves = jax.tree.leaves(jax.device_get(arrays))
    try:
        folder.mkdir(parents=True)
        np.savez(folder / OWN, **{str(i): leaf for i, leaf in enumerate(leaves)})
        write_text(folder / OWN_META, meta)
    except FileExistsError as error:
        raise _there_already(directory, step) from error
    except OSError as error:
        raise _unsaved(directory, step, error) from error
    # The one being written is the newest of those that are kept.
    for old in _steps(directory)[KEPT:]:
        shutil.rmtree(directory / str(old))


def _unsaved(directory: Path, step: int, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{directory}: step {step} could not be saved ({error}). Make room on "
        "the disk or check its permissions, then run the same command again: "
        "it goes on from the step before."
    )


def _there_already(directory: Path, step: int) -> ArtifactError:
    return ArtifactError(
        f"{directory}: step {step} is already there. Another program writes into "
        "this folder; give each run a work directory of its own."
    )


def restore_checkpoint(directory: Path, template: Any) -> Checkpoint | None:
    """The newest step that verifies, or None where there is none.

    A step without a manifest was cut off while being written; a damaged one is set
    aside with a warning. Either way the step before it counts. One of a newer schema is
    refused.

    Args:
        directory: the phase's folder of checkpoints.
        template: a pytree of arrays or `ShapeDtypeStruct`s like the saved one.
    """
    while True:
        step = hosts.on_first(lambda: _newest(directory))
        if step is None:
            return None
        found, fault = None, ""
        try:
            found = _restore(directory, step, template)
        except ArtifactError as error:
            fault = str(error)
        faults = list(filter(None, hosts.gather_texts(fault)))
        if not faults:
            return found
        if hosts.is_first():
            _set_aside(directory, step, faults[0])


def _newest(directory: Path) -> int | None:
    """The newest step whose manifest verifies; faulty ones are out of the way then."""
    for step in _steps(directory):
        folder = directory / str(step)
        if not (folder / MANIFEST).exists():
            logger.warning("%s was cut off while being written: left out", folder)
            shutil.rmtree(folder)
            continue
        try:
            verify_manifest(folder)
        except ArtifactError as error:
            _set_aside(directory, step, str(error))
        else:
            _check_schema(folder)
            return step
    return None


def _check_schema(folder: Path) -> None:
    """Refuses a step of a newer kdjax: the one before it would cost what it trained."""
    path = folder / FORMAT
    if path.exists():  # the first ones lack it
        said = json.loads(path.read_text("utf-8"))
        check_schema(
            str(folder), said["schema"], known=SCHEMA, version=said["kdjax_version"]
        )


def _set_aside(directory: Path, step: int, fault: str) -> None:
    aside = directory / f"damaged-{step}"
    shutil.rmtree(aside, ignore_errors=True)
    (directory / str(step)).rename(aside)
    logger.warning("%s Set aside as %s.", fault, aside.name)


def _restore(directory: Path, step: int, template: Any) -> Checkpoint:
    """A step's arrays on this process's first device, whoever wrote them."""
    if (directory / str(step) / OWN).exists():
        return _restore_own(directory / str(step), step, template)
    here = SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        template,
    )
    args = ocp.args.Composite(
        arrays=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
    )
    try:
        with _manager(directory, _alone(), cleanup=False) as manager:
            restored = manager.restore(step, args=args)
    except Exception as error:  # orbax raises bare Exception for unreadable arrays
        raise ArtifactError(
            f"{directory / str(step)} can't be restored ({error})."
        ) from error
    return Checkpoint(step, restored["arrays"], json.dumps(restored["meta"]))


def _restore_own(folder: Path, step: int, template: Any) -> Checkpoint:
    wanted, structure = jax.tree.flatten(template)
    with np.load(folder / OWN, allow_pickle=False) as file:
        leaves = [file[str(i)] for i in range(len(file.files))]
    found = [(leaf.shape, leaf.dtype) for leaf in leaves]
    if found != [(leaf.shape, leaf.dtype) for leaf in wanted]:
        raise ArtifactError(f"{folder} can't be restored (it holds other arrays).")
    arrays = jax.device_put(leaves, jax.local_devices()[0])
    meta = (folder / OWN_META).read_text("utf-8")
    return Checkpoint(step, jax.tree.unflatten(structure, arrays), meta)


def _steps(directory: Path) -> list[int]:
    """Steps below `directory`, newest first."""
    if not directory.is_dir():
        return []
    return sorted(
        (int(p.name) for p in directory.iterdir() if p.name.isdecimal() and p.is_dir()),
        reverse=True,
    )


def _alone() -> MultiprocessingOptions:
    """This process by itself, whether or not there are others."""
    number = jax.process_index()
    if jax.process_count() == 1:
        return MultiprocessingOptions()
    return MultiprocessingOptions(
        primary_host=number,
        active_processes={number},
        barrier_sync_key_prefix=f"process-{number}",
    )


def _manager(
    directory: Path, processes: MultiprocessingOptions, *, cleanup: bool
) -> ocp.CheckpointManager:
    # A relative path would be accepted here and fail in a thread later.
    path = directory.resolve()
    path.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.LatestN(KEPT),
        create=False,
        cleanup_tmp_directories=cleanup,
        enable_async_checkpointing=False,
        multiprocessing_options=processes,
    )
    return ocp.CheckpointManager(path, options=options)
