"""Checkpoints: orbax writes and reads them, a SHA-256 manifest detects corruption.

Orbax restores flipped bits silently. Each save here waits until it is complete and then
writes a manifest; `restore_checkpoint` takes the newest step whose manifest verifies.

On several hosts all processes save and restore together: each writes its part, the first
writes the manifest and chooses the step. The numbers of processes and devices may differ
from those at the time of saving.
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
from jax.sharding import SingleDeviceSharding

from kdjax.errors import ArtifactError
from kdjax.io import files
from kdjax.io.files import MANIFEST
from kdjax.training import hosts


@contextlib.contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Removes the handlers that absl adds to a root logger without handlers."""
    before = logging.root.handlers[:]
    try:
        yield
    finally:
        logging.root.handlers[:] = before


with _root_logger_kept():
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_manager, checkpoint_managers
    from orbax.checkpoint.options import MultiprocessingOptions

logger = logging.getLogger(__name__)

ROOM = 1 << 20  # bytes of disk that must be free besides twice the arrays
KEPT = 2  # the newest step, and one more in case the newest is damaged

SCHEMA = 1
FORMAT = "kdjax.json"  # in a step's folder: schema and version of kdjax

# Files of a step that one of several processes wrote for itself.
OWN = "arrays.npz"
OWN_META = "meta.json"


class Checkpoint(NamedTuple):
    """A restored step: its arrays, on one device, and its metadata as JSON text."""

    step: int
    arrays: Any
    meta: str


def save_checkpoint(directory: Path, step: int, arrays: Any, meta: str) -> None:
    """Writes a step below `directory` and waits until it is complete on disk.

    A pytree of arrays on several processes' devices is written by all of them into a
    shared folder; then all must call this. Other arrays are written by this process only.
    `meta` is the JSON text of an object.
    """
    shared = any(
        isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        for leaf in jax.tree.leaves(arrays)
    )
    save = _save if shared or jax.process_count() == 1 else _save_own
    try:
        save(directory, step, arrays, meta)
    except checkpoint_manager.StepAlreadyExistsError as error:
        raise ArtifactError(
            f"{directory}: step {step} already exists. Another program writes to this "
            "folder: give each run its own work directory."
        ) from error
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{directory}: step {step} could not be saved ({error}). Free disk space or "
            "check the permissions, then rerun the command: it resumes from the step "
            "before."
        ) from error

    def seal() -> None:
        form = {"schema": SCHEMA, "kdjax_version": files.kdjax_version()}
        files.write_text(directory / str(step) / FORMAT, json.dumps(form) + "\n")
        files.write_manifest(directory / str(step))

    hosts.on_first(seal) if shared else seal()


def _save(directory: Path, step: int, arrays: Any, meta: str) -> None:
    args = ocp.args.Composite(
        arrays=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(json.loads(meta))
    )
    directory.mkdir(parents=True, exist_ok=True)
    # On a full disk the errors of orbax's threads would fill the screen.
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    if shutil.disk_usage(directory).free < 2 * size + ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    log = logging.getLogger("absl")
    with _root_logger_kept(), contextlib.ExitStack() as held:
        # Orbax logs the traceback of an error which it also raises.
        held.callback(log.setLevel, log.level)
        log.setLevel(logging.CRITICAL)
        manager = held.enter_context(_manager(directory, cleanup=True))
        saved = manager.save(step, args=args, force=True)
        manager.wait_until_finished()
    if not saved:
        raise checkpoint_manager.StepAlreadyExistsError(str(step))


def _save_own(directory: Path, step: int, arrays: Any, meta: str) -> None:
    """`_save` for one of several processes: orbax lets only the first write."""
    folder = directory / str(step)
    if folder.exists():
        raise checkpoint_manager.StepAlreadyExistsError(str(step))
    leaves = jax.tree.leaves(jax.device_get(arrays))
    folder.mkdir(parents=True)
    np.savez(folder / OWN, **{str(i): leaf for i, leaf in enumerate(leaves)})
    files.write_text(folder / OWN_META, meta)
    for old in _steps(directory)[KEPT:]:
        shutil.rmtree(directory / str(old))


def restore_checkpoint(directory: Path, template: Any) -> Checkpoint | None:
    """The newest step that verifies; None if there is none.

    A step without a manifest was interrupted while being written; a damaged one is renamed
    with a warning. In both cases the step before it is taken. A step of a newer schema
    is an error. `template` is a pytree of arrays or `ShapeDtypeStruct`s like the saved.
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
    """The newest step whose manifest verifies; removes or renames faulty ones."""
    for step in _steps(directory):
        folder = directory / str(step)
        if not (folder / MANIFEST).exists():
            logger.warning("%s is ignored: its writing was interrupted", folder)
            shutil.rmtree(folder)
            continue
        try:
            files.verify_manifest(folder)
        except ArtifactError as error:
            _set_aside(directory, step, str(error))
            continue
        # Checkpoints of the first versions have no such file.
        if (folder / FORMAT).exists():
            form = json.loads((folder / FORMAT).read_text("utf-8"))
            schema, version = form["schema"], form["kdjax_version"]
            files.check_schema(str(folder), schema, known=SCHEMA, version=version)
        return step
    return None


def _set_aside(directory: Path, step: int, fault: str) -> None:
    aside = directory / f"damaged-{step}"
    shutil.rmtree(aside, ignore_errors=True)
    (directory / str(step)).rename(aside)
    logger.warning("%s Renamed to %s.", fault, aside.name)


def _restore(directory: Path, step: int, template: Any) -> Checkpoint:
    """A step's arrays on this process's first device."""
    folder, here = directory / str(step), jax.local_devices()[0]
    if (folder / OWN).exists():
        wanted, structure = jax.tree.flatten(template)
        with np.load(folder / OWN, allow_pickle=False) as file:
            leaves = [file[str(i)] for i in range(len(file.files))]
        found, needed = (
            [(leaf.shape, leaf.dtype) for leaf in own] for own in (leaves, wanted)
        )
        if found != needed:
            raise ArtifactError(f"{folder} can't be restored (it has other arrays).")
        arrays = jax.tree.unflatten(structure, jax.device_put(leaves, here))
        return Checkpoint(step, arrays, (folder / OWN_META).read_text("utf-8"))
    place = SingleDeviceSharding(here)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        template,
    )
    args = ocp.args.Composite(
        arrays=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
    )
    number, processes = jax.process_index(), dict[str, Any]()
    if jax.process_count() > 1:  # each process reads by itself
        processes = {"primary_host": number, "active_processes": {number}}
        processes["barrier_sync_key_prefix"] = f"process-{number}"
    try:
        with _root_logger_kept(), _manager(directory, **processes) as manager:
            restored = manager.restore(step, args=args)
    except Exception as error:  # orbax raises bare Exception for unreadable arrays
        raise ArtifactError(f"{folder} can't be restored ({error}).") from error
    return Checkpoint(step, restored["arrays"], json.dumps(restored["meta"]))


def _steps(directory: Path) -> list[int]:
    """Steps below `directory`, newest first."""
    folders = (p for p in directory.glob("*") if p.name.isdecimal() and p.is_dir())
    return sorted((int(folder.name) for folder in folders), reverse=True)


def _manager(
    directory: Path, *, cleanup: bool = False, **processes: Any
) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.LatestN(KEPT),
        create=False,
        cleanup_tmp_directories=cleanup,
        enable_async_checkpointing=False,
        multiprocessing_options=MultiprocessingOptions(**processes),
    )
    # Orbax would accept a relative path and fail later in a thread.
    return ocp.CheckpointManager(directory.resolve(), options=options)
