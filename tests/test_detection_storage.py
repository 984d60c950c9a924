"""Saved detectors: round trips, damage, contents that do not fit, and cards."""

import hashlib
import json
import pickle
import shutil
import zipfile

import jax
import numpy as np
import pytest

from kdjax.data.scaler import Scaler
from kdjax.data.series import Ranges
from kdjax.detection import storage
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.storage import card_markdown, load_detector, save_detector
from kdjax.detection.tables import score_table
from kdjax.detection.thresholds import Threshold
from kdjax.errors import ArtifactError
from kdjax.io.files import MANIFEST, write_manifest
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.residual import (
    ResidualModel,
)

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
    return jax.tree.leaves(
        (detector.model.params, detector.scalers, detector.gaussians)
    )


def same(first, second):
    """Whether two detectors are equal bit for bit."""
    assert jax.tree.structure(first.model.params) == jax.tree.structure(
        second.model.params
    )
    for a, b in zip(leaves(first), leaves(second), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    bare = {"scalers": None, "gaussians": None}
    kinds = [(d.model.kind, d.model.architecture) for d in (first, second)]
    assert kinds[0] == kinds[1]
    plain = [d._replace(model=None, **bare) for d in (first, second)]
    assert plain[0] == plain[1]
    return True


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
    assert description["schema"] == 2
    assert description["channels"] == ["x", "y"]
    assert description["thresholds"][0] == {
        "tau": 8.0, "method": "conformal", "rate": 0.1, "n": 20, "rank": 19,
        "source": "own", "detail": "",
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


@pytest.fixture
def full(netted):
    """`netted` with everything that schema 2 added."""
    return netted._replace(
        thresholds=(
            Threshold(8.0, "pot", 0.001, 400, 0, "own", "a tail of shape 0.1"),
            Threshold(12.0, "fixed", 0.0, 40, 0, "pooled", "3 of 40 lie above", 1),
        ),
        ranges=Ranges(
            np.float32([[0, -1], [0, -2]]), np.float32([[1, 1], [3, np.nan]])
        ),
        calibration=(np.arange(5.0), np.float32([0.25, np.inf])),
        reference=np.float32([[1, np.nan], [2, 3]]),
        step=0.25,
        attribution="conditional",
        min_duration=3,
        cooldown=7,
        clear=0.6,
    )


def test_ranges_calibration_reference_and_alarms_come_back(tmp_path, full):
    save_detector(tmp_path / "d", full)
    loaded = load_detector(tmp_path / "d")
    arrays = {"ranges": None, "calibration": (), "reference": None}
    assert same(full._replace(**arrays), loaded._replace(**arrays))
    pairs = [
        *zip(full.ranges, loaded.ranges, strict=True),
        *zip(full.calibration, loaded.calibration, strict=True),
        (full.reference, loaded.reference),
    ]
    for before, after in pairs:
        assert before.dtype == after.dtype and before.tobytes() == after.tobytes()
    assert isinstance(loaded.ranges, Ranges)


def test_more_than_ten_entities_keep_the_order_of_their_scores(tmp_path, small):
    scores = tuple(np.full(2, float(i)) for i in range(12))
    many = small._replace(
        entities=tuple(f"e{i}" for i in range(11)),
        thresholds=small.thresholds[:1] * 12,
        scalers=Scaler(
            *(np.repeat(component[:1], 12, 0) for component in small.scalers)
        ),
        gaussians=Gaussian(
            *(np.repeat(component[:1], 12, 0) for component in small.gaussians)
        ),
        calibration=scores,
    )
    save_detector(tmp_path / "d", many)
    loaded = load_detector(tmp_path / "d")
    assert [own[0] for own in loaded.calibration] == list(range(12))


def test_a_folder_of_schema_1_loads_with_the_defaults(tmp_path, small, rows):
    """Written by hand as kdjax wrote them: no key and no array that schema 2 added."""
    folder = tmp_path / "old"
    folder.mkdir()
    own, pooled = small.thresholds
    keys = ("tau", "method", "rate", "n", "rank", "source")
    description = {
        "schema": 1, "kind": "mahalanobis", "architecture": None,
        "channels": ["x", "y"], "window": 4, "stride": 3, "allowed_points": 0,
        "max_gap": 5.0, "entities": ["a"],
        "thresholds": [{k: getattr(tau, k) for k in keys} for tau in (own, pooled)],
    }  # fmt: skip
    (folder / "detector.json").write_text(json.dumps(description))
    (folder / "card.json").write_text(json.dumps(small.card))
    (folder / "card.md").write_text(card_markdown(small.card))
    np.savez(
        folder / "arrays.npz",
        **{
            "scaler/offset": small.scalers.offset,
            "scaler/scale": small.scalers.scale,
            "normal/mean": small.gaussians.mean,
            "normal/whiten": small.gaussians.whiten,
        },
    )
    write_manifest(folder)
    loaded = load_detector(folder)
    assert same(loaded, small)
    assert loaded.ranges is None and loaded.reference is None
    assert (loaded.calibration, loaded.step, loaded.attribution) == (
        (),
        0.0,
        "correlation",
    )
    assert (loaded.min_duration, loaded.cooldown, loaded.clear) == (1, 0, 1)
    assert score_table(loaded, rows(9), entity="a").equals(
        score_table(small, rows(9), entity="a")
    )


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
        ArtifactError, match="(Restore it from a copy or create it again)"
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


@pytest.mark.parametrize("name", ["detector.json", "nowhere"])
def test_what_is_no_folder_is_refused(saved, name):
    with pytest.raises(
        ArtifactError, match="is not a folder.*such as WORKDIR/detectors/"
    ):
        load_detector(saved / name)


def test_detectors_near_a_wrong_folder_are_named(saved, tmp_path):
    workdir = tmp_path / "run"
    for name in "abcdefg":
        shutil.copytree(saved, workdir / "detectors" / name)
    first = ", ".join(str(workdir / "detectors" / name) for name in "abcde")
    for wrong, problem in (
        (workdir, "has no MANIFEST.sha256"),
        (workdir / "detectors", "has no MANIFEST.sha256"),
        (workdir / "detectors" / "student", "is not a folder"),
        (workdir / "detector" / "student", "is not a folder"),
    ):
        with pytest.raises(ArtifactError) as error:
            load_detector(wrong)
        assert str(error.value) == (
            f"{wrong} {problem}: give the folder of a detector, such as "
            f"WORKDIR/detectors/student (7 near it: {first}, …)."
        )


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
    rewrite(saved, lambda d: d | {"schema": 3})
    message = "has schema 3, this kdjax reads up to 2: install a newer kdjax"
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
    with pytest.raises(ArtifactError, match="does not hold.*claims object"):
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


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("window", "4", "not a whole number of at least 1"),
        ("window", True, "not a whole number of at least 1"),
        ("stride", 0, "not a whole number of at least 1"),
        ("allowed_points", 4, "allowed_points is not below window"),
        ("cooldown", -1, "not a whole number of at least 0"),
        ("clear", 0, "0 is not above 0 and at most 1"),
        ("max_gap", -0.5, "-0.5 is below 0"),
        ("step", "soon", "'soon' is not a number"),
        ("channels", ["x", "x"], "not a list of different names"),
        ("channels", ["x"], r"scaler/offset .* expected floats of shape \(2, 1\)"),
        ("entities", [5], "5 is not text"),
        ("entities", ["a", "b"], "number of thresholds is not that of the entities"),
        ("blame", "guess", "'guess' is not an attribution method"),
        ("kind", "pca+difference", r"normal/mean .* floats of shape \(2, 4\)"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(saved, field, value, message):
    rewrite(saved, lambda d: d | {field: value})
    with pytest.raises(ArtifactError, match=f"does not hold .*{message}"):
        load_detector(saved)


@pytest.mark.parametrize("tau", ["nan", None, "high"])
def test_a_threshold_that_no_score_compares_with_is_refused(saved, tau):
    rewrite(saved, lambda d: d["thresholds"][0].update(tau=tau) or d)
    with pytest.raises(ArtifactError, match="does not hold .*is not a number"):
        load_detector(saved)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("scaler/scale", np.zeros_like, "scaler/scale is not above 0 throughout"),
        ("scaler/scale", lambda a: a.astype(np.int32), "scaler/scale is int32"),
        ("scaler/offset", lambda a: a * np.nan, "scaler/offset holds a value that is"),
        ("normal/mean", lambda a: a[:1], r"shape \(1, 2\), expected .* \(2, 2\)"),
        ("normal/whiten", lambda a: a[:, :1], r"expected floats of shape \(2, 2, 2\)"),
        ("range/high", lambda a: a[:, 0], "range is float32 of shape"),
        ("reference", lambda a: a[:, :1], "reference is float32 of shape"),
        (
            "calibration/1",
            None,
            "number of calibration arrays is not that of the entities",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, full, name, change, message):
    save_detector(tmp_path / "d", full)
    with np.load(tmp_path / "d" / "arrays.npz", allow_pickle=False) as file:
        arrays = dict(file)
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change(arrays[name])
    write_arrays(tmp_path / "d", **arrays)
    with pytest.raises(ArtifactError, match=f"does not hold .*{message}"):
        load_detector(tmp_path / "d")


def test_what_is_no_archive_is_refused(saved):
    (saved / "arrays.npz").write_bytes(b"PK\3\4 and nothing more")
    write_manifest(saved)
    with pytest.raises(ArtifactError, match="does not hold a kdjax detector"):
        load_detector(saved)


def test_an_archive_that_ends_inside_a_member_is_refused(saved):
    path = saved / "arrays.npz"
    data = bytearray(path.read_bytes())
    # Both sizes of the last member, as the table at the end has them.
    place = data.rindex(b"PK\1\2") + 20
    for start in (place, place + 4):
        data[start : start + 4] = (10**6).to_bytes(4, "little")
    path.write_bytes(data)
    write_manifest(saved)
    with pytest.raises(ArtifactError, match=r"does not hold .*EOFError"):
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
    with pytest.raises(
        ArtifactError, match=r"claims float32 of shape \(10000000000000"
    ):
        load_detector(saved)


def members(folder):
    """The members of the folder's archive as bytes."""
    with zipfile.ZipFile(folder / "arrays.npz") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_members(folder, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(folder / "arrays.npz", "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    write_manifest(folder)


def test_rewritten_members_load(saved, small):
    """Guards the tests below: what they change is what is refused."""
    write_members(saved, members(saved))
    assert same(load_detector(saved), small)


def test_compressed_arrays_are_refused(saved):
    # They could hold any number of zeros in few bytes.
    write_members(saved, members(saved), zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactError, match=r"does not hold.*npy is compressed"):
        load_detector(saved)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"(2, 2)", b"(2, 3)"),
        (b"(2, 2)", b"(2, 1)"),
        (b"(2, 2)", b"(-2,2)"),
        (b"<f4", b"<f8"),
        (b"<f4", b"|O "),
        (b"descr", b"crash"),
        (b"NUMPY\x01", b"NUMPY\x02"),
        (b"NUMPY\x01", b"OTHER\x01"),
    ],
)
def test_a_header_that_says_something_else_is_refused(saved, before, after):
    content = members(saved)
    data = content["scaler/offset.npy"]
    assert data.count(before) == 1
    write_members(saved, content | {"scaler/offset.npy": data.replace(before, after)})
    with pytest.raises(ArtifactError, match="does not hold a kdjax detector"):
        load_detector(saved)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY\x01\x00", b"no array"])
def test_a_member_that_is_no_array_is_refused(saved, data):
    write_members(saved, members(saved) | {"scaler/offset.npy": data})
    with pytest.raises(ArtifactError, match="does not hold a kdjax detector"):
        load_detector(saved)


def test_bytes_after_an_array_are_refused(saved):
    content = members(saved)
    content["scaler/scale.npy"] += b"more"
    write_members(saved, content)
    with pytest.raises(
        ArtifactError, match=r"scaler/scale.npy claims float32 of shape"
    ):
        load_detector(saved)


def test_a_directory_that_claims_more_than_the_archive_has_is_refused(saved):
    """The size in the archive's directory is no better witness than the header."""
    header = np.lib.format.magic(1, 0)
    count = (1 << 32) // 8  # 2 GiB of float32
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count},), }}"
    text = text.ljust(117) + "\n"
    data = header + len(text).to_bytes(2, "little") + text.encode() + b"few"
    path = saved / "arrays.npz"
    write_members(saved, {"scaler/offset.npy": data})
    raw, claimed = path.read_bytes(), len(data) - 3 + 4 * count
    entry = raw.index(b"PK\x01\x02") + 24  # the uncompressed size in the directory
    size = claimed.to_bytes(4, "little")
    path.write_bytes(raw[:entry] + size + raw[entry + 4 :])
    write_manifest(saved)
    with pytest.raises(ArtifactError, match="claims float32 of shape"):
        load_detector(saved)


@pytest.mark.parametrize("left_out", ["calibration/0.npy", "range/high.npy"])
def test_a_part_without_its_other_half_is_refused(tmp_path, full, left_out):
    save_detector(tmp_path / "d", full)
    content = members(tmp_path / "d")
    del content[left_out]
    write_members(tmp_path / "d", content)
    with pytest.raises(ArtifactError, match="does not hold a kdjax detector"):
        load_detector(tmp_path / "d")


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
