"""A changed byte of anything saved is noticed.

Samples of `benchmarks/attacks/mutations.py`.
"""

import importlib
import random
import shutil
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.detection.storage import save_detector
from kdjax.export.container import load_onnx
from kdjax.export.stablehlo import load_stablehlo
from kdjax.io.files import MANIFEST, save_state
from kdjax.training.checkpoints import save_checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def modules():
    """`damages`, `mutations` and what the fuzzers make."""
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks" / "attacks"))
        names = ("damages", "mutations", "fuzz_artifacts")
        yield [importlib.import_module(name) for name in names]


def outcomes(found):
    """How often each outcome came, and those that are none of the good ones."""
    bad = [one for one in found if one["outcome"] in ("wrong", "crash")]
    return Counter(one["outcome"] for one in found), bad


@pytest.fixture
def pair(modules, small, tmp_path):
    """Two saved detectors: a network, and a control whose files can take their place."""
    save_detector(tmp_path / "network", modules[2].detector())
    save_detector(tmp_path / "control", small)
    return tmp_path / "network", tmp_path / "control"


@pytest.mark.parametrize("turned", [False, True], ids=["network", "control"])
def test_damage_to_a_detector_is_noticed(modules, pair, turned):
    folder, other = pair[::-1] if turned else pair
    subject = modules[1].detector_subject(folder, other)
    assert len(subject.files) == 5
    subject = subject._replace(use=lambda: modules[1].load_detector(folder) and b"")
    counts, bad = outcomes([*modules[0].attack(subject, random.Random(1), limit=40)])
    assert not bad and set(counts) == {"refused"} and counts.total() >= 190


def test_every_byte_of_a_manifest_counts(modules, pair):
    folder, other = pair
    subject = modules[1].detector_subject(folder, other)
    subject = subject._replace(
        files=(folder / MANIFEST,),
        use=lambda: modules[1].load_detector(folder) and b"",
        places=10,
    )
    counts, bad = outcomes([*modules[0].attack(subject, random.Random(2))])
    assert not bad and set(counts) == {"refused"}
    assert counts["refused"] > 2 * (folder / MANIFEST).stat().st_size


@pytest.mark.parametrize("name", ["onnx", "stablehlo"])
def test_damage_to_an_export_is_noticed(modules, name, tmp_path):
    base = modules[2].base()
    data, load = {
        "onnx": (base.onnx, load_onnx),
        "stablehlo": (base.hlo, load_stablehlo),
    }[name]
    path, other = tmp_path / f"a.{name}", tmp_path / f"b.{name}"
    path.write_bytes(data)
    other.write_bytes({"onnx": base.hlo, "stablehlo": base.onnx}[name])
    subject = modules[1].export_subject(path, load, other, name)
    subject = subject._replace(use=lambda: repr(load(path).plan).encode())
    counts, bad = outcomes([*modules[0].attack(subject, random.Random(3), limit=300)])
    assert not bad and counts == {"refused": 300}


def test_damage_to_a_state_is_noticed(modules, tmp_path):
    path, other = tmp_path / "state", tmp_path / "other"
    path.write_bytes(modules[2].base().state)
    make = modules[2].plain_stream
    save_state(other, {"stream": make(0.5).state()})
    subject = modules[1].state_subject(path, other, make)
    counts, bad = outcomes([*modules[0].attack(subject, random.Random(4))])
    assert not bad and set(counts) == {"refused"}
    assert counts["refused"] > 2 * path.stat().st_size


@pytest.fixture(scope="module")
def template():
    return jax.eval_shape(lambda: arrays(0))


def arrays(step):
    rng = np.random.default_rng(step)
    return {
        "kernel": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32),
        "count": jnp.int32(step),
    }


def test_a_damaged_checkpoint_gives_way_to_the_one_before(modules, template, tmp_path):
    for step in (4, 9):
        save_checkpoint(tmp_path / "teacher", step, arrays(step), '{"done": false}')
    found = [
        *modules[0].attack_checkpoints(
            tmp_path / "teacher", template, random.Random(5), limit=3
        )
    ]
    counts, bad = outcomes(found)
    assert not bad and set(counts) == {"fell back"} and counts["fell back"] > 25


def test_a_step_that_is_no_folder_is_no_step(modules, template, tmp_path):
    save_checkpoint(tmp_path, 4, arrays(4), "{}")
    (tmp_path / "9").write_text("a file")
    assert modules[0].restore_checkpoint(tmp_path, template).step == 4


@pytest.fixture
def work(finished, tmp_path):
    return Path(shutil.copytree(finished.workdir, tmp_path / "run"))


def test_damage_to_the_records_of_a_run_changes_no_result(modules, finished, work):
    records, log = modules[1].record_subjects(work, finished.settings)
    found = [*modules[0].attack(records, random.Random(6), limit=6)]
    # A run whose results are gone is made again.
    found = [one for one in found if one["damage"] != "remove"]
    counts, bad = outcomes(found)
    assert not bad and counts["refused"] > 12
    counts, bad = outcomes([*modules[0].attack(log, random.Random(7), limit=30)])
    assert not bad and counts["same"] > 25


def test_a_run_goes_on_from_damaged_checkpoints_to_the_same_end(
    modules, finished, work
):
    rng = random.Random(8)
    found = [*modules[1].resumed_runs(work, finished.settings, rng, 2)]
    assert [one["outcome"] for one in found] == ["fell back"] * 2, found
