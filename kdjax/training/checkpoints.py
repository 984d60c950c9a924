"""Checkpoints: orbax writes and reads them, a SHA-256 manifest says if they are whole.

Orbax restores flipped bits without a word and reports failed saves only when waited
for, so each save here waits, seals its folder with a manifest, and restoring takes the
newest step whose manifest verifies.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_manager, checkpoint_managers

from kdjax.artifacts import MANIFEST, verify_manifest, write_manifest
from kdjax.errors import ArtifactError

logger = logging.getLogger(__name__)

KEPT = 2  # The newest, and one before it should the newest turn out damaged.


class Checkpoint(NamedTuple):
    """A restored step: its arrays, and its metadata as JSON text."""

    step: int
    arrays: Any
    meta: str


def save_checkpoint(directory: Path, step: int, arrays: Any, meta: str) -> None:
    """Writes one step below `directory` and waits until it is whole on disk.

    Args:
        directory: the phase's folder of checkpoints.
        step: number of the step; the folder's name.
        arrays: any pytree of arrays.
        meta: JSON text of an object.
    """
    with _manager(directory) as manager:
        args = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays),
            meta=ocp.args.JsonSave(json.loads(meta)),
        )
        try:
            saved = manager.save(step, args=args, force=True)
            manager.wait_until_finished()
        except checkpoint_manager.StepAlreadyExistsError:
            saved = False
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{directory}: step {step} could not be saved ({error}). Make room on "
                "the disk or check its permissions, then run the same command again: "
                "it goes on from the step before."
            ) from error
    if not saved:
        raise ArtifactError(
            f"{directory}: step {step} is already there. Another program writes into "
            "this folder; give each run a work directory of its own."
        )
    write_manifest(directory / str(step))


def restore_checkpoint(directory: Path, template: Any) -> Checkpoint | None:
    """The newest step that verifies, or None where there is none.

    A step without a manifest was cut off while being written; a damaged one is set
    aside with a warning. Either way the step before it counts.

    Args:
        directory: the phase's folder of checkpoints.
        template: a pytree of arrays or `ShapeDtypeStruct`s like the saved one.
    """
    for step in _steps(directory):
        folder = directory / str(step)
        if not (folder / MANIFEST).exists():
            logger.warning("%s was cut off while being written: left out", folder)
            shutil.rmtree(folder)
            continue
        try:
            verify_manifest(folder)
            return _restore(directory, step, template)
        except ArtifactError as error:
            aside = directory / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            logger.warning("%s Set aside as %s.", error, aside.name)
    return None


def _restore(directory: Path, step: int, template: Any) -> Checkpoint:
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    args = ocp.args.Composite(
        arrays=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
    )
    try:
        with _manager(directory) as manager:
            restored = manager.restore(step, args=args)
    except Exception as error:  # orbax raises bare Exception for unreadable arrays
        raise ArtifactError(
            f"{directory / str(step)} can't be restored ({error})."
        ) from error
    return Checkpoint(step, restored["arrays"], json.dumps(restored["meta"]))


def _steps(directory: Path) -> list[int]:
    """Steps below `directory`, newest first."""
    if not directory.is_dir():
        return []
    return sorted(
        (int(path.name) for path in directory.iterdir() if path.name.isdecimal()),
        reverse=True,
    )


def _manager(directory: Path) -> ocp.CheckpointManager:
    # A relative path would be accepted here and fail in a thread later.
    path = directory.resolve()
    path.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.LatestN(KEPT),
        cleanup_tmp_directories=True,
        enable_async_checkpointing=False,
    )
    return ocp.CheckpointManager(path, options=options)
