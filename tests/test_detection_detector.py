"""Detectors: scores of raw rows against loops, and the folder they are kept in."""

import hashlib
import json
import pickle
import shutil
import zipfile

import jax
import numpy as np
import pytest

from kdjax.artifacts import MANIFEST, write_manifest
from kdjax.detection import storage
from kdjax.detection.detector import entity_index, score_windows
from kdjax.detection.storage import card_markdown, load_detector, save_detector
from kdjax.detection.table import score_table
from kdjax.errors import ArtifactError, DataError
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.residual import ResidualModel

FILES = ["MANIFEST.sha256", "arrays.npz", "card.json", "card.md", "detector.json"]


@pytest.fixture
def netted(small):
    """The detector `small` with a network, of layers that nest its parameters."""
    shape = Architecture(2, (3, 2), decoder="feedback", head="sigmoid")
    params = network(shape).init(jax.random.key(4))
    return small._replace(model=ResidualModel("autoencoder", params, shape))


@pytest.fixture
def saved(tmp_path, small):
    folder = tmp_path / "detector"
    save_detector(folder, small)
    return folder


def leaves(detector):
    return jax.tree.leaves((detector.model.params, detector.scalers, detector.normals))


def same(first, second):
    """Whether two detectors are equal bit for bit."""
    assert jax.tree.structure(first.model.params) == jax.tree.structure(
        second.model.params
    )
    for a, b in zip(leaves(first), leaves(second), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    bare = {"scalers": None, "normals": None}
    kinds = [(d.model.kind, d.model.architecture) for d in (first, second)]
    assert kinds[0] == kinds[1]
    plain = [d._replace(model=None, **bare) for d in (first, second)]
    assert plain[0] == plain[1]
    return True


# Scoring.


def test_score_windows_scales_and_measures_with_the_entitys_own(small, rows):
    values = rows(9).values
    starts = np.array([0, 2, 5])
    for index, entity in enumerate(("a", "pooled")):
        assert entity_index(small, entity) == index
        scaled = (values - small.scalers.offset[index]) / small.scalers.scale[index]
        centred = scaled.astype(np.float64) - small.normals.mean[index]
        whitened = centred @ small.normals.whiten[index].T.astype(np.float64)
        points = (whitened**2).sum(axis=1)
        wanted = np.stack([points[s : s + 4] for s in starts])
        got = score_windows(small, index, values, starts, batch_size=2)
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_no_windows_give_no_scores(small, rows):
    got = score_windows(small, 0, rows(9).values, np.empty(0, int))
    assert got.shape == (0, 4)


def test_unknown_entity_is_refused_with_those_known(small):
    with pytest.raises(
        DataError, match="knows no entity 'b': give one of a, or pooled"
    ):
        entity_index(small, "b")


# The folder.


def test_round_trip_is_bit_equal(tmp_path, netted):
    save_detector(tmp_path / "d", netted)
    loaded = load_detector(tmp_path / "d")
    assert same(netted, loaded)


def test_a_loaded_detector_scores_the_same_bits(tmp_path, netted, rows):
    save_detector(tmp_path / "d", netted)
    series = rows(20)
    before = score_table(netted, series, entity="a")
    after = score_table(load_detector(tmp_path / "d"), series, entity="a")
    assert before.equals(after)


def test_a_control_has_no_architecture_and_no_parameters(saved, small):
    assert same(small, load_detector(saved))
    assert load_detector(saved).model == ResidualModel("mahalanobis", {})


def test_what_the_folder_holds(saved):
    assert sorted(path.name for path in saved.iterdir()) == FILES
    assert [path.name for path in saved.parent.iterdir()] == ["detector"]
    description = json.loads((saved / "detector.json").read_text())
    assert description["schema"] == 1
    assert description["channels"] == ["x", "y"]
    assert description["thresholds"][0] == {
        "tau": 8.0, "method": "conformal", "rate": 0.1, "n": 20, "rank": 19,
        "source": "own",
    }  # fmt: skip
    lines = (saved / MANIFEST).read_text().splitlines()
    for line in lines:
        digest, size, name = line.split("  ")
        data = (saved / name).read_bytes()
        assert (digest, int(size)) == (hashlib.sha256(data).hexdigest(), len(data))
    assert sorted(line.split("  ")[2] for line in lines) == FILES[1:]


def test_no_array_needs_pickle(tmp_path, netted):
    save_detector(tmp_path / "d", netted)
    with np.load(tmp_path / "d" / "arrays.npz", allow_pickle=False) as file:
        assert all(file[name].dtype == np.float32 for name in file.files)
    for path in (tmp_path / "d").iterdir():
        with pytest.raises((pickle.UnpicklingError, ValueError, KeyError, EOFError)):
            pickle.loads(path.read_bytes())


def test_an_old_detector_is_replaced_whole(saved, netted):
    (saved / "detector.json").write_text("an old one, however damaged")
    save_detector(saved, netted)
    assert same(load_detector(saved), netted)
    assert [path.name for path in saved.parent.iterdir()] == ["detector"]


@pytest.mark.parametrize("writer", ["write_text", "write_manifest", "card_markdown"])
def test_a_failure_while_writing_leaves_the_old_one(saved, small, netted, writer):
    def fail(*_):
        raise OSError("No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, writer, fail)
        with pytest.raises(OSError, match="No space left"):
            save_detector(saved, netted)
    assert same(load_detector(saved), small)
    assert [path.name for path in saved.parent.iterdir()] == ["detector"]


def test_a_failure_while_renaming_leaves_the_old_one(saved, small, netted, monkeypatch):
    rename = storage.Path.rename

    def fail(path, target):
        if path.name.endswith(".new"):
            raise OSError("Input/output error")
        return rename(path, target)

    monkeypatch.setattr(storage.Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output"):
        save_detector(saved, netted)
    assert same(load_detector(saved), small)
    assert [path.name for path in saved.parent.iterdir()] == ["detector"]


def test_numbers_that_json_lacks_are_not_saved(saved, small):
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_detector(saved, small._replace(card={"f1": float("nan")}))
    assert same(load_detector(saved), small)


def test_a_folder_of_something_else_is_not_replaced(tmp_path, small):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"1")
    (tmp_path / "file").write_text("text")
    for name in ("photos", "file"):
        with pytest.raises(ArtifactError, match="holds no kdjax detector: give a new"):
            save_detector(tmp_path / name, small)
    assert (tmp_path / "photos" / "one.jpg").read_bytes() == b"1"
    assert (tmp_path / "file").read_text() == "text"
    (tmp_path / "empty").mkdir()
    save_detector(tmp_path / "empty", small)
    assert same(load_detector(tmp_path / "empty"), small)


# Damage.


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_noticed(saved, name):
    data = bytearray((saved / name).read_bytes())
    data[len(data) // 2] ^= 1
    (saved / name).write_bytes(data)
    with pytest.raises(
        ArtifactError, match="(Restore it from a copy or make it again)"
    ):
        load_detector(saved)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_flipped_bit_is_named(saved, name):
    data = bytearray((saved / name).read_bytes())
    data[-2] ^= 4
    (saved / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"damaged: {name} has changed .SHA-256"):
        load_detector(saved)


def test_a_truncated_file_is_named_with_both_sizes(saved):
    path = saved / "arrays.npz"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:100])
    message = rf"arrays.npz has 100 bytes, not {size}\. Restore it"
    with pytest.raises(ArtifactError, match=message):
        load_detector(saved)


def test_missing_and_extra_files_are_named_together(saved):
    (saved / "arrays.npz").rename(saved / "notes.txt")
    message = "arrays.npz is missing; notes.txt is not in the manifest"
    with pytest.raises(ArtifactError, match=message):
        load_detector(saved)


def test_a_folder_without_manifest_is_refused(tmp_path, saved):
    (saved / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match="has no MANIFEST.sha256.*Give the folder"):
        load_detector(saved)
    with pytest.raises(ArtifactError, match="has no MANIFEST"):
        load_detector(tmp_path)


@pytest.mark.parametrize("name", ["detector.json", "nowhere"])
def test_what_is_no_folder_is_refused(saved, name):
    with pytest.raises(ArtifactError, match="is no folder.*such as WORKDIR/detectors/"):
        load_detector(saved / name)


def test_a_foreign_folder_with_a_manifest_is_refused(tmp_path):
    (tmp_path / "readme.txt").write_text("not a detector")
    write_manifest(tmp_path)
    with pytest.raises(ArtifactError, match="does not hold a kdjax detector.*train it"):
        load_detector(tmp_path)


def rewrite(folder, change):
    """Changes the description and seals the folder again."""
    path = folder / "detector.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps(change(description)))
    write_manifest(folder)


def test_a_newer_schema_is_refused(saved):
    rewrite(saved, lambda d: d | {"schema": 2})
    message = "has schema 2, this kdjax reads up to 1: install a newer kdjax"
    with pytest.raises(ArtifactError, match=message):
        load_detector(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: [],
        lambda d: {},
        lambda d: d | {"schema": "1"},
        lambda d: d | {"thresholds": [{"tau": 1}]},
        lambda d: d | {"architecture": {"width": 2}},
        lambda d: d | {"architecture": "large"},
        lambda d: d | {"channels": None},
    ],
)
def test_a_description_of_another_shape_is_refused(saved, change):
    rewrite(saved, change)
    with pytest.raises(ArtifactError, match="does not hold a kdjax detector"):
        load_detector(saved)


def test_an_unknown_kind_of_model_is_refused_where_it_is_used(saved, rows):
    rewrite(saved, lambda d: d | {"kind": "transformer"})
    with pytest.raises(ArtifactError, match="'transformer' is unknown.*newer kdjax"):
        score_table(load_detector(saved), rows(9), entity="a")


def write_arrays(folder, **arrays):
    np.savez(folder / "arrays.npz", **arrays)
    write_manifest(folder)


def test_arrays_with_objects_in_them_are_refused(saved):
    write_arrays(saved, **{"scaler/offset": np.array([{}], dtype=object)})
    with pytest.raises(ArtifactError, match="does not hold a kdjax detector.*pickle"):
        load_detector(saved)


def test_absent_and_clashing_arrays_are_refused(saved):
    write_arrays(saved, **{"scaler/offset": np.zeros(2)})
    with pytest.raises(ArtifactError, match="does not hold.*scaler/scale"):
        load_detector(saved)
    names = ("scaler/offset", "scaler/scale", "normal/mean", "normal/whiten")
    for below in ("params/a/b", "params/a/b/c"):
        clash = {"params/a": np.zeros(1), below: np.zeros(1)}
        write_arrays(saved, **{name: np.zeros(2) for name in names}, **clash)
        with pytest.raises(ArtifactError, match="does not hold a kdjax detector"):
            load_detector(saved)


def test_what_is_no_archive_is_refused(saved):
    (saved / "arrays.npz").write_bytes(b"PK\3\4 and nothing more")
    write_manifest(saved)
    with pytest.raises(ArtifactError, match="does not hold a kdjax detector"):
        load_detector(saved)


def test_a_header_that_claims_terabytes_is_refused(saved):
    # 10^13 float32: more than the machine has, and more than the file does.
    header = np.lib.format.magic(1, 0)
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,), }"
    text = text.ljust(117) + "\n"
    data = header + len(text).to_bytes(2, "little") + text.encode()
    with zipfile.ZipFile(saved / "arrays.npz", "w") as archive:
        archive.writestr("scaler/offset.npy", data)
    write_manifest(saved)
    with pytest.raises(ArtifactError, match="does not hold a kdjax detector"):
        load_detector(saved)


# Cards.


def test_a_card_as_markdown():
    card = {
        "title": "student of plant",
        "data": {"name": "plant", "channels": ["x", "y"], "empty": []},
        "results": [{"model": "student", "f1": 0.5}],
        "never_tested_on": ["winter"],
        "note": "short",
    }
    assert card_markdown(card) == (
        "# student of plant\n\n"
        "## Data\n\n- name: plant\n- channels:\n  - x\n  - y\n- empty: []\n\n"
        "## Results\n\n- model student, f1 0.5\n\n"
        "## Never tested on\n\n- winter\n\n"
        "## Note\n\nshort\n"
    )
    assert card_markdown({}) == "# Detector\n"


def test_cards_are_saved_and_loaded(saved, small):
    assert load_detector(saved).card == small.card
    assert json.loads((saved / "card.json").read_text()) == small.card
    assert (saved / "card.md").read_text() == card_markdown(small.card)


def test_a_detector_can_move(tmp_path, saved, small):
    shutil.move(saved, tmp_path / "elsewhere")
    assert same(load_detector(tmp_path / "elsewhere"), small)
