"""Checkpoints: exact round trips, and the step before when one is damaged."""

import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import ArtifactError
from kdjax.io.files import MANIFEST
from kdjax.training import checkpoints
from kdjax.training.checkpoints import restore_checkpoint, save_checkpoint


def tree(step):
    rng = np.random.default_rng(step)
    return {
        "params": {"kernel": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)},
        "nested": [(jnp.arange(3) + step, {"deep": jnp.float32(0.1 * step)}), ()],
        "count": jnp.int32(2**31 - 1 - step),
        "key": jnp.asarray([step, 2**32 - 1], jnp.uint32),
        "flag": jnp.asarray(True),
        "odd": jnp.asarray([np.nan, np.inf, -0.0, 1e-45], jnp.float32),
    }


TEMPLATE = jax.eval_shape(lambda: tree(0))


def save(directory, *steps):
    for step in steps:
        meta = {"step": step, "best": 0.1 * step, "none": None, "done": False}
        save_checkpoint(directory, step, tree(step), json.dumps(meta))


def assert_is(checkpoint, step):
    assert checkpoint.step == step
    assert json.loads(checkpoint.meta) == {
        "step": step,
        "best": 0.1 * step,
        "none": None,
        "done": False,
    }
    expected = tree(step)
    assert jax.tree.structure(checkpoint.arrays) == jax.tree.structure(expected)
    for found, wanted in zip(
        jax.tree.leaves(checkpoint.arrays), jax.tree.leaves(expected), strict=True
    ):
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        assert np.asarray(found).tobytes() == np.asarray(wanted).tobytes()


def largest_file(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip_a_bit(folder):
    path = largest_file(folder / "arrays" / "d")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(folder):
    path = largest_file(folder / "arrays" / "d")
    path.write_bytes(path.read_bytes()[:-1])


def delete_a_file(folder):
    (folder / "arrays" / "_METADATA").unlink()


def change_the_metadata(folder):
    path = folder / "meta" / "metadata"
    path.write_text(path.read_text().replace("false", "true "))


def spoil_the_manifest(folder):
    (folder / MANIFEST).write_text("nothing of use\n")


def cut_off(folder):
    (folder / MANIFEST).unlink()


DAMAGES = [flip_a_bit, truncate, delete_a_file, change_the_metadata, spoil_the_manifest]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with steps 4 and 9; copied before use."""
    directory = tmp_path_factory.mktemp("checkpoints") / "teacher"
    save(directory, 4, 9)
    return directory


@pytest.fixture
def directory(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "teacher"))


def test_the_newest_step_comes_back_exactly(saved):
    assert_is(restore_checkpoint(saved, TEMPLATE), 9)
    assert_is(restore_checkpoint(saved, tree(0)), 9)


@pytest.mark.parametrize("damage", [*DAMAGES, cut_off])
def test_a_damaged_step_gives_way_to_the_one_before(directory, damage, caplog):
    damage(directory / "9")
    with caplog.at_level(logging.WARNING, logger="kdjax"):
        assert_is(restore_checkpoint(directory, TEMPLATE), 4)
    (record,) = caplog.records
    said = record.getMessage()
    assert record.levelname == "WARNING"
    assert str(directory / "9") in said
    if damage is cut_off:
        assert "is ignored: its writing was interrupted" in said
        assert not (directory / "damaged-9").exists()
    else:
        assert "Renamed to damaged-9." in said
        assert (directory / "damaged-9").is_dir()
    # Training goes on from there, to the same step and beyond.
    save(directory, 9)
    assert_is(restore_checkpoint(directory, TEMPLATE), 9)


def test_a_step_damaged_twice_is_set_aside_twice(directory, caplog):
    for _ in range(2):
        truncate(directory / "9")
        assert_is(restore_checkpoint(directory, TEMPLATE), 4)
        save(directory, 9)
    assert len(caplog.records) == 2
    assert_is(restore_checkpoint(directory, TEMPLATE), 9)


def test_nothing_whole_is_nothing(directory, caplog):
    flip_a_bit(directory / "9")
    cut_off(directory / "4")
    assert restore_checkpoint(directory, TEMPLATE) is None
    assert len(caplog.records) == 2
    assert restore_checkpoint(directory, TEMPLATE) is None
    assert len(caplog.records) == 2


def test_no_folder_is_nothing(tmp_path):
    assert restore_checkpoint(tmp_path / "absent", TEMPLATE) is None
    assert not (tmp_path / "absent").exists()


def test_arrays_that_orbax_cannot_read_are_set_aside(directory, monkeypatch, caplog):
    restore = checkpoints.ocp.CheckpointManager.restore

    def fail_at_9(manager, step, **options):
        if step == 9:
            raise Exception("Encountered error")  # noqa: TRY002 - as orbax does
        return restore(manager, step, **options)

    # A real failure leaves coroutines behind that warn whenever they are collected.
    monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "restore", fail_at_9)
    assert_is(restore_checkpoint(directory, TEMPLATE), 4)
    assert "9 can't be restored (Encountered error" in caplog.text
    assert (directory / "damaged-9").is_dir()


def test_two_steps_are_kept(tmp_path):
    save(tmp_path, 1, 2, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "2"]
    assert_is(restore_checkpoint(tmp_path, TEMPLATE), 10)


def test_a_step_is_saved_once(directory):
    with pytest.raises(ArtifactError, match="step 9 already exists.*Another program"):
        save(directory, 9)
    assert_is(restore_checkpoint(directory, TEMPLATE), 9)


def test_a_relative_folder_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(Path("runs/teacher"), 3)
    assert_is(restore_checkpoint(Path("runs/teacher"), TEMPLATE), 3)
    assert (tmp_path / "runs" / "teacher" / "3" / MANIFEST).exists()


def test_a_kill_between_save_and_seal_costs_one_step(directory, monkeypatch, caplog):
    def killed(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.files, "write_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        save(directory, 12)
    monkeypatch.undo()
    assert_is(restore_checkpoint(directory, TEMPLATE), 9)
    assert "12 is ignored" in caplog.text
    save(directory, 12)
    assert_is(restore_checkpoint(directory, TEMPLATE), 12)


def test_a_failed_save_says_what_to_do(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "save", full)
    with pytest.raises(
        ArtifactError, match=r"step 3 could not be saved.*No space.*Free"
    ):
        save(tmp_path, 3)
