"""Detectors: scores of raw rows against loops, and the folder they are kept in."""

import hashlib
import json
import pickle
import shutil
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from kdjax.data.scaler import Scaler
from kdjax.data.series import Ranges
from kdjax.detection import storage
from kdjax.detection.attribution import attribution_matrix
from kdjax.detection.detector import (
    entity_index,
    explain_batches,
    gaussian_of,
    residual_batches,
    score_scaled,
    score_windows,
)
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.storage import card_markdown, load_detector, save_detector
from kdjax.detection.tables import score_table
from kdjax.detection.thresholds import Threshold
from kdjax.errors import ArtifactError, DataError
from kdjax.io.files import MANIFEST, write_manifest
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.residual import (
    ResidualModel,
    component,
    components_of,
    join_models,
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


# Scoring.


def test_score_windows_scales_and_measures_with_the_entitys_own(small, rows):
    values = rows(9).values
    starts = np.array([0, 2, 5])
    for index, entity in enumerate(("a", "pooled")):
        assert entity_index(small, entity) == index
        scaled = (values - small.scalers.offset[index]) / small.scalers.scale[index]
        centred = scaled.astype(np.float64) - small.gaussians.mean[index]
        whitened = centred @ small.gaussians.whiten[index].T.astype(np.float64)
        points = (whitened**2).sum(axis=1)
        wanted = np.stack([points[s : s + 4] for s in starts])
        got = score_windows(small, index, values, starts, batch_size=2)
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_no_windows_give_no_scores(small, rows):
    got = score_windows(small, 0, rows(9).values, np.empty(0, int))
    assert got.shape == (0, 4)


def test_unknown_entity_is_refused_with_those_known(small):
    with pytest.raises(DataError, match="has no entity 'b': give one of a, or pooled"):
        entity_index(small, "b")


# Missing cells.

GAPS = {
    3: [0],
    4: [0],
    7: [0, 1],
    8: [1],
    15: [0, 1],
    16: [0, 1],
    17: [0, 1],
    18: [0, 1],
}
STARTS = np.array([0, 1, 4, 7, 10, 13, 15, 16])


@pytest.fixture
def gappy(rows):
    """Rows `[20, 2]` with missing cells; the window at 15 has no value at all."""
    values = rows(20, seed=5).values
    for row, columns in GAPS.items():
        values[row, columns] = np.nan
    return values


def filled_by_hand(detector, index, values):
    """Scaled windows `[M, L, D]` with their gaps filled, and which cells were there."""
    scaler = Scaler(*(field[index] for field in detector.scalers))
    scaled = (values - scaler.offset) / scaler.scale
    windows = np.stack([scaled[s : s + detector.window] for s in STARTS])
    filled = [pd.DataFrame(w).ffill().bfill().fillna(0.0).to_numpy() for w in windows]
    observed = np.tile(~np.isnan(windows), len(components_of(detector.model.kind)))
    return np.stack(filled).astype(np.float32), observed


def errors_by_hand(detector, windows):
    """The errors `[M, L, F]` of complete windows, in float64."""
    kinds = components_of(detector.model.kind)
    found = [part_by_hand(component(detector.model, kind), windows) for kind in kinds]
    return np.concatenate(found, axis=-1)


def part_by_hand(model, windows):
    """Of one kind, `[M, L, D]`."""
    exact = np.float64(windows)
    if model.kind == "autoencoder":
        net = network(model.architecture)
        outputs = net.outputs(model.params, jnp.asarray(windows))
        return np.abs(np.float64(net.activate(outputs)) - windows)
    if model.kind == "difference":
        return np.abs(np.diff(exact, axis=1, prepend=exact[:, :1]))
    if model.kind == "moving_average":
        counts = np.arange(1, windows.shape[1] + 1)[:, None]
        return np.abs(exact - exact.cumsum(axis=1) / counts)
    if model.kind == "kmeans":
        centres = np.float64(model.params["centres"])
        apart = ((exact[:, None] - centres) ** 2).sum(axis=(2, 3))
        return np.abs(exact - centres[apart.argmin(axis=1)])
    return exact


def marginal_scores(gaussian, errors, observed):
    """d_o (Σ_oo)⁻¹ d_o, NaN where nothing was observed, in float64."""
    covariance = np.linalg.inv(gaussian.whiten.astype(float).T @ gaussian.whiten)
    scores = np.full(errors.shape[:-1], np.nan)
    for place in np.ndindex(scores.shape):
        seen = observed[place]
        if seen.any():
            centred = (errors[place] - gaussian.mean)[seen]
            own = covariance[np.ix_(seen, seen)]
            scores[place] = centred @ np.linalg.inv(own) @ centred
    return scores


KINDS = (
    "autoencoder",
    "mahalanobis",
    "difference",
    "kmeans+difference+moving_average",
    "autoencoder+kmeans",
)


@pytest.fixture(params=KINDS)
def kinds(request, small, netted):
    """A detector of each kind."""
    return of_kind(request.param, small, netted)


def of_kind(kind, small, netted):
    """The detector `small` with a model of this kind, and a Normal of its width."""
    rng = np.random.default_rng(9)
    known = {
        "autoencoder": netted.model,
        "kmeans": ResidualModel(
            "kmeans", {"centres": rng.normal(size=(5, 4, 2)).astype(np.float32)}
        ),
    }
    names = components_of(kind)
    model = join_models([known.get(name, ResidualModel(name, {})) for name in names])
    if len(names) == 1:
        return small._replace(model=model)
    width = 2 * len(names)
    whiten = np.tril(rng.normal(size=(2, width, width))) + 2 * np.eye(width)
    gaussians = Gaussian(rng.random((2, width)).astype("f"), whiten.astype("f"))
    return small._replace(model=model, gaussians=gaussians)


@pytest.mark.parametrize("index", [0, 1])
def test_scores_of_windows_with_gaps_are_those_by_hand(kinds, gappy, index):
    windows, observed = filled_by_hand(kinds, index, gappy)
    gaussian = Gaussian(*(field[index] for field in kinds.gaussians))
    wanted = marginal_scores(gaussian, errors_by_hand(kinds, windows), observed)
    got = score_windows(kinds, index, gappy, STARTS, batch_size=4)
    np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=1e-5)
    assert np.isnan(got[6]).all() and np.isnan(got[0]).sum() == 0
    assert np.isnan(got[3]).tolist() == [True, False, False, False]


def test_complete_windows_score_the_same_beside_rows_with_gaps(kinds, gappy):
    complete = gappy.copy()
    complete[19] = 1.0
    complete[np.isnan(complete)] = 0.5
    spoilt = complete.copy()
    spoilt[19, 0] = np.nan
    starts = np.arange(0, 15, 2)
    plain = score_windows(kinds, 0, complete, starts)
    masked = score_windows(kinds, 0, spoilt, starts)
    np.testing.assert_allclose(masked, plain, rtol=1e-4, atol=1e-6)


def test_eight_devices_and_one_give_the_same_for_gaps(kinds, gappy):
    """Batches of 64 are shared; those of 1 are not."""
    starts = np.tile(STARTS, 16)
    shared = score_windows(kinds, 0, gappy, starts, batch_size=128)
    alone = score_windows(kinds, 0, gappy, STARTS, batch_size=1)
    np.testing.assert_allclose(shared, np.tile(alone, (16, 1)), rtol=1e-5)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("index", [0, 1])
def test_contributions_sum_to_the_points(kinds, gappy, index, gaps):
    values = gappy if gaps else np.nan_to_num(gappy, nan=0.25)
    attribution = attribution_matrix(gaussian_of(kinds, index), method="correlation")
    pieces = explain_batches(
        kinds, index, values, STARTS, attribution=attribution, batch_size=4
    )
    points, parts = (np.concatenate(side) for side in zip(*pieces, strict=True))
    assert parts.shape == (*points.shape, 2) and (parts >= 0).all()
    known = ~np.isnan(points)
    assert known.all() == (not gaps)
    np.testing.assert_allclose(parts.sum(axis=-1)[known], points[known], rtol=1e-4)
    wanted = score_windows(kinds, index, values, STARTS, batch_size=4)
    np.testing.assert_allclose(points, wanted, rtol=1e-5)


def test_contributions_blame_the_channel_that_moved(small):
    """With W diagonal each channel's part is its own standardised square."""
    values = np.zeros((4, 2), np.float32)
    values[2] = [3.0, -2.0]
    attribution = attribution_matrix(gaussian_of(small, 1), method="correlation")
    (found,) = explain_batches(small, 1, values, np.array([0]), attribution=attribution)
    np.testing.assert_allclose(found.contributions[0, 2], [9.0, 4.0], rtol=1e-6)
    assert not found.contributions[0, [0, 1, 3]].any()


def test_a_channels_part_is_the_sum_of_what_its_errors_have(small):
    """With W diagonal: of a joined kind the values and the steps, by hand."""
    scale = np.float32([1, 2, 3, 4])
    detector = small._replace(
        model=ResidualModel("mahalanobis+difference", {}),
        gaussians=Gaussian(np.zeros((2, 4), "f"), np.tile(np.diag(scale), (2, 1, 1))),
    )
    values = np.zeros((4, 2), np.float32)
    values[2] = [3.0, -2.0]
    for method in ("correlation", "conditional"):
        attribution = attribution_matrix(gaussian_of(detector, 1), method=method)
        (found,) = explain_batches(
            detector, 1, values, np.array([0]), attribution=attribution
        )
        wanted = np.zeros((4, 2))
        wanted[2] = [3**2 + (3 * 3) ** 2, (2 * 2) ** 2 + (4 * 2) ** 2]
        wanted[3] = [(3 * 3) ** 2, (4 * 2) ** 2]
        np.testing.assert_allclose(found.contributions[0], wanted, rtol=1e-6)
        np.testing.assert_allclose(found.points[0], wanted.sum(axis=1), rtol=1e-6)


def test_errors_are_unknown_exactly_where_cells_are_missing(kinds, gappy):
    scaled = (gappy - kinds.scalers.offset[0]) / kinds.scalers.scale[0]
    pieces = residual_batches(kinds.model, scaled, STARTS, window=4, batch_size=4)
    found = np.concatenate(list(pieces))
    windows, observed = filled_by_hand(kinds, 0, gappy)
    np.testing.assert_array_equal(np.isnan(found), ~observed)
    wanted = errors_by_hand(kinds, windows)
    np.testing.assert_allclose(found[observed], wanted[observed], rtol=1e-4, atol=1e-6)


def test_an_overflow_is_no_missing_cell(gappy, netted):
    scaled = gappy.copy()
    scaled[0] = np.inf  # inf − inf inside the network is NaN
    (found,) = residual_batches(
        netted.model, scaled, np.array([0]), window=4, batch_size=1
    )
    observed = ~np.isnan(scaled[:4])
    np.testing.assert_array_equal(np.isnan(found[0]), ~observed)
    assert np.isposinf(found[0][observed]).all()
    scores = score_windows(
        netted._replace(
            scalers=Scaler(np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32))
        ),
        0,
        scaled,
        np.array([0]),
    )
    assert np.isposinf(scores[0, 0])


def test_scaled_rows_score_as_raw_ones_do(kinds, gappy):
    scaled = (gappy - kinds.scalers.offset[0]) / kinds.scalers.scale[0]
    got = score_scaled(
        kinds.model, gaussian_of(kinds, 0), scaled, STARTS, window=4, batch_size=4
    )
    wanted = score_windows(kinds, 0, gappy, STARTS, batch_size=4)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


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


@pytest.mark.parametrize("kind", KINDS[3:])
def test_a_joined_kind_comes_back_and_scores_the_same_bits(
    tmp_path, small, netted, rows, kind
):
    detector = of_kind(kind, small, netted)
    save_detector(tmp_path / "d", detector)
    loaded = load_detector(tmp_path / "d")
    assert loaded.model.kind == kind
    assert loaded.model.architecture == detector.model.architecture
    for a, b in zip(leaves(detector), leaves(loaded), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    series = rows(20)
    series.values[11, 1] = np.nan
    for options in ({}, {"contributions": True}):
        before = score_table(detector, series, entity="a", **options)
        assert before["score"].notna().sum() > 15
        assert score_table(loaded, series, entity="a", **options).equals(before)


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
            Threshold(12.0, "fixed", 0.0, 40, 0, "pooled", "3 of 40 lie above"),
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
    assert (loaded.min_duration, loaded.cooldown) == (1, 0)
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
        ("max_gap", -0.5, "-0.5 is below 0"),
        ("step", "soon", "'soon' is not a number"),
        ("channels", ["x", "x"], "not a list of different names"),
        ("channels", ["x"], r"scaler/offset .* expected floats of shape \(2, 1\)"),
        ("entities", [5], "5 is not text"),
        ("entities", ["a", "b"], "no threshold for each entity"),
        ("blame", "guess", "'guess' is no attribution method"),
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
        ("calibration/1", None, "no calibration scores for each entity"),
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
