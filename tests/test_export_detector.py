"""Exported detectors against kdjax itself, and files that something happened to."""

import hashlib
import json
import sys

import jax
import numpy as np
import pytest

from kdjax import KDDetector, load_sample
from kdjax.data.scaler import Scaler
from kdjax.detection.detector import Detector, score_batches, score_windows
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.scores import window_scores
from kdjax.detection.thresholds import Threshold
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.classifier import init_network
from kdjax.models.forecasters import FORECASTERS, init_forecaster
from kdjax.models.residual import (
    ResidualModel,
    component,
    components_of,
    join_models,
    residual_names,
)

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

from kdjax.export import container
from kdjax.export.container import SEAL, load_onnx
from kdjax.export.files import export_file
from kdjax.export.onnx import onnx_file
from kdjax.export.stablehlo import load_stablehlo, stablehlo_file

D, L, TAU = 5, 14, 15.0


def make_detector(kind, architecture=None, *, count=0, seed=0):
    """A detector with random numbers everywhere, and other ones for the pooled entry."""
    rng = np.random.default_rng(seed)

    def gaussian(*shape, scale=1.0):
        return rng.normal(scale=scale, size=shape).astype(np.float32)

    def part_of(kind):
        params = {}
        if kind == "autoencoder":
            init = network(architecture).init(jax.random.key(seed))
            params = jax.tree.map(lambda leaf: gaussian(*leaf.shape, scale=0.5), init)
        if kind == "pca":
            components = np.linalg.qr(gaussian(D, 2))[0].T
            params = {"mean": gaussian(D), "components": components}
        if kind == "kmeans":
            params = {"centres": gaussian(9, L, D)}
        if kind == "memory":
            params = {"windows": gaussian(9, L, D)}
        if kind in FORECASTERS:
            params = init_forecaster(kind, rng, gaussian(50, D), units=6)
            for name, leaf in params["network"].items():
                if name.endswith("bias"):
                    params["network"][name] = gaussian(*leaf.shape, scale=0.5)
            params["network"]["head"] *= 4
        if kind == "classifier":
            networks = [init_network(rng, D) for _ in range(3)]
            networks = [own | {"head": 80 * own["head"]} for own in networks]
            params = {
                "low": gaussian(D) - 2,
                "scale": rng.uniform(1, 4, D).astype(np.float32),
                "mean": rng.uniform(size=D).astype(np.float32),
                "level": np.float32([0, 1, 1]),
                "networks": jax.tree.map(lambda *own: np.stack(own), *networks),
            }
        return ResidualModel(kind, params, architecture if params else None)

    model = join_models([part_of(name) for name in components_of(kind)])
    width = len(residual_names(kind, range(D)))
    thresholds = tuple(
        Threshold(tau, "conformal", 0.1, 20, 19, "own") for tau in (TAU, 2 * TAU)
    )
    return Detector(
        model=model,
        channels=tuple(f"c{number}" for number in range(D)),
        window=L,
        stride=3,
        allowed_points=count,
        max_gap=5.0,
        entities=("a",),
        scalers=Scaler(gaussian(2, D), rng.uniform(0.5, 2, (2, D)).astype(np.float32)),
        gaussians=Gaussian(
            gaussian(2, width, scale=0.1),
            gaussian(2, width, width, scale=0.5) + 2 * np.eye(width, dtype="f"),
        ),
        thresholds=thresholds,
        card={},
    )


def make_rows(what):
    """`[60, D]`; with holes of all forms, and with values that overflow."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(60, D)).astype(np.float32)
    if what == "missing":
        rows[rng.random(rows.shape) < 0.3] = np.nan
        rows[5:9] = np.nan  # rows without a cell
        rows[25 : 25 + L + 2] = np.nan  # a window without one
        rows[:4, 0] = np.nan  # none before
        rows[45:, 2] = np.nan  # none in the whole window
    if what != "plain":
        rows[11, 1], rows[58, 3] = np.inf, 1e30
    return rows


def expected(detector, index, rows):
    """What kdjax says of the windows at stride 1."""
    starts = np.arange(len(rows) - L + 1)
    pieces = list(score_batches(detector, index, rows, starts, explain=True))
    points = np.concatenate([piece.points for piece in pieces])
    parts = np.concatenate([piece.contributions for piece in pieces])
    largest = window_scores(points, count=detector.allowed_points)
    return points, largest, largest > detector.thresholds[index].tau, parts


def windows_of(rows):
    return np.lib.stride_tricks.sliding_window_view(rows, L, 0).swapaxes(1, 2)


def assert_alike(scored, wanted, *, near=2e-5):
    points, largest, alarm, parts = wanted
    close = {"rtol": 2e-5, "atol": 2e-5}
    np.testing.assert_allclose(scored.point_score, points, **close)
    np.testing.assert_allclose(scored.window_score, largest, **close)
    np.testing.assert_array_equal(scored.alarm, alarm)
    # A small part of a large score has the rounding of the whole.
    whole = np.maximum(1, np.nan_to_num(points))[..., None]
    finite = np.isfinite(parts)
    np.testing.assert_array_equal(np.isfinite(scored.contribution), finite)
    found, wanted = (np.where(finite, p, 0) for p in (scored.contribution, parts))
    assert (np.abs(found - wanted) / whole).max() < near


ARCHITECTURES = [
    Architecture(D, (16,), "joint", "repeat", "linear"),
    Architecture(D, (6, 4), "joint", "feedback", "sigmoid"),
    Architecture(D, (6, 4), "independent", "repeat", "sigmoid"),
    Architecture(D, (16,), "independent", "feedback", "linear"),
]
NET = "autoencoder"
BASELINES = ["mahalanobis", "difference", "moving_average", "pca"]
KINDS = [(kind, None) for kind in BASELINES] + [
    (NET, architecture) for architecture in ARCHITECTURES
]
KINDS += [
    ("kmeans", None),
    ("memory", None),
    ("classifier", None),
    ("kmeans+memory", None),
    ("kmeans+difference+moving_average", None),
    ("autoencoder+kmeans+pca", ARCHITECTURES[0]),
    ("cnn_forecast", None),
    ("gru_forecast", None),
    ("cnn_forecast+difference", None),
]
SLOW = (ARCHITECTURES[0], ARCHITECTURES[3])
each_kind = pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        pytest.param(
            *case, marks=[pytest.mark.slow] * (case in [(NET, a) for a in SLOW])
        )
        for case in KINDS
    ],
    ids=["-".join(map(str, (kind, *(arch or ())))) for kind, arch in KINDS],
)


@each_kind
def test_an_onnx_file_scores_as_kdjax_does(kind, architecture):
    for count, index in [(0, 0), (2, 1)]:
        detector = make_detector(kind, architecture, count=count)
        scorer = load_onnx(onnx_file(detector, index))
        for what in ("plain", "overflow", "missing"):
            rows = make_rows(what)
            wanted = expected(detector, index, rows)
            assert wanted[2].any() and (
                what == "plain" or not np.isfinite(wanted[0]).all()
            )
            # What a channel contributes is a small difference between two scores: against
            # float64 kdjax is off by up to 2.2e-4 here, and the file by 2e-5.
            near = 4e-4 if kind == "classifier" else 2e-5
            assert_alike(scorer.run(windows_of(rows)), wanted, near=near)


def test_windows_without_enough_scores_are_unknown():
    detector = make_detector("mahalanobis", count=3)
    windows = np.full((3, L, D), np.nan, np.float32)
    windows[0, :3] = 1e3  # three points above τ: one fewer than an alarm takes
    windows[1, :4] = 1e3
    for scored in (
        load_onnx(onnx_file(detector, 0)).run(windows),
        load_stablehlo(stablehlo_file(detector, 0)).run(windows),
    ):
        assert np.isnan(scored.window_score).tolist() == [True, False, True]
        assert scored.alarm.tolist() == [0, 1, 0]
        assert np.isnan(scored.point_score).sum(axis=1).tolist() == [L - 3, L - 4, L]


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [KINDS[place] for place in (2, 4, 7, 10, 11, 14, 15)],
)
def test_a_stablehlo_file_scores_as_kdjax_does(kind, architecture):
    detector = make_detector(kind, architecture, count=1)
    scorer = load_stablehlo(stablehlo_file(detector, 0))
    for what in ("plain", "missing"):
        rows = make_rows(what)
        assert_alike(
            scorer.run(windows_of(rows)), expected(detector, 0, rows), near=2e-4
        )
    one = scorer.run(windows_of(rows)[:1])
    assert_alike(one, [part[:1] for part in expected(detector, 0, rows)], near=2e-4)


def test_the_graph_is_standard_and_its_names_are_those_of_the_contract():
    architecture = Architecture(D, (6, 4))
    model = onnx.load_from_string(
        onnx_file(make_detector("autoencoder", architecture), 0)
    )
    onnx.checker.check_model(model, full_check=True)
    assert [(part.domain, part.version) for part in model.opset_import] == [("", 17)]
    assert model.ir_version == 9
    shapes = {
        value.name: [
            axis.dim_param or axis.dim_value
            for axis in value.type.tensor_type.shape.dim
        ]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "x": ["B", L, D],
        "point_score": ["B", L],
        "window_score": ["B"],
        "alarm": ["B"],
        "contribution": ["B", L, D],
    }
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("LSTM") == 4 and "Loop" not in kinds


def test_a_file_says_what_it_is_and_carries_its_digest():
    data = onnx_file(make_detector("mahalanobis"), 1)
    metadata = {
        entry.key: entry.value for entry in onnx.load_from_string(data).metadata_props
    }
    assert json.loads(metadata["channels"]) == ["c0", "c1", "c2", "c3", "c4"]
    assert metadata["window"] == "14" and float(metadata["threshold"]) == 30
    assert metadata["threshold_method"] == "conformal"
    assert metadata["entity"] == "pooled" and metadata["schema"] == "1"
    assert metadata["kdjax_version"]
    blank = data.replace(metadata["digest"].encode(), b"0" * 64)
    assert hashlib.sha256(blank).hexdigest() == metadata["digest"]
    plan = load_onnx(data).plan
    assert (plan.entity, plan.tau, plan.window, plan.stride) == ("pooled", 30.0, L, 3)
    # Every rule of a stream, those at their defaults too.
    rules = json.loads(metadata["stream"])
    assert set(rules) == set(plan._fields) and "plan" not in metadata
    assert rules["tau"] == 30 and rules["min_duration"] == plan.min_duration
    assert (rules["no_data"], rules["reading"], rules["context"]) == (False, {}, [])


@pytest.mark.parametrize("name", ["stream", "plan"])
def test_rules_are_read_under_the_name_of_the_first_version_too(name):
    plan = load_onnx(onnx_file(make_detector("mahalanobis"), 0)).plan
    about = container.metadata_of(plan)
    rules = about.pop("stream")
    assert container.read_plan(about | {name: rules}, "a file") == plan
    with pytest.raises(ArtifactError, match="a file has no stream rules of kdjax"):
        container.read_plan(about, "a file")


@pytest.mark.parametrize("make", [onnx_file, stablehlo_file])
def test_the_same_detector_gives_the_same_bytes(make):
    detector = make_detector("autoencoder", Architecture(D, (3,)))
    first = make(detector, 0)
    assert first == make(detector, 0) != make(detector, 1)
    assert b".py" not in first  # no path of the machine that made it


def test_kernels_of_8_bits_are_the_nearest_and_run_alike_everywhere():
    architecture = Architecture(D, (64,))
    detector = make_detector("autoencoder", architecture)
    whole, small = onnx_file(detector, 0), onnx_file(detector, 0, quantize="int8")
    assert len(small) < 0.5 * len(whole)
    rows = make_rows("plain")
    wanted, exact = (expected(d, 0, rows)[0] for d in (rounded(detector), detector))
    session = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
    bare = session.run(["point_score"], {"x": windows_of(rows)})[0]
    for points in (load_onnx(small).run(windows_of(rows)).point_score, bare):
        assert np.abs(points / wanted - 1).max() < 1e-4
    # What the rounding itself does is another matter.
    assert np.abs(wanted / exact - 1).max() > 1e-2


@pytest.mark.parametrize("kind", ["autoencoder+difference", "kmeans+pca+gru_forecast"])
def test_a_joined_kind_is_quantised_where_its_weights_are_large(kind):
    detector = make_detector(kind, Architecture(D, (64,)))
    small = onnx_file(detector, 0, quantize="int8")
    rows = make_rows("plain")
    points = load_onnx(small).run(windows_of(rows)).point_score
    wanted, exact = (expected(d, 0, rows)[0] for d in (rounded(detector), detector))
    assert np.abs(points / wanted - 1).max() < 1e-4
    assert np.abs(wanted / exact - 1).max() > 1e-3


def rounded(detector):
    """The same detector whose large weights were rounded by hand."""
    model = detector.model
    params = {
        kind: params_rounded(kind, component(model, kind).params)
        for kind in components_of(model.kind)
    }
    params = params if len(params) > 1 else params[model.kind]
    return detector._replace(model=model._replace(params=params))


def params_rounded(kind, params):
    if kind in ("pca", "difference"):
        return params
    if kind in ("kmeans", "memory"):
        # In steps of each number of a window, from the first of them.
        ((name, bank),) = params.items()
        return {name: bank[:1] + round_kernel(bank - bank[:1])}
    if kind == "classifier":
        networks = {
            name: np.stack([round_kernel(own, least=256) for own in leaf])
            for name, leaf in params["networks"].items()
        }
        return params | {"networks": networks}
    return jax.tree.map(lambda leaf: round_kernel(np.asarray(leaf), least=256), params)


def round_kernel(leaf, least=0):
    """Kernels `[I, O]` or `[W, I, O]` in steps of an output's max |w| / 127."""
    if leaf.ndim < 2 or leaf.size < least:
        return leaf
    others = (0, 1) if leaf.ndim == 3 and least else 0
    step = np.abs(leaf).max(axis=others).astype(np.float64) / 127
    step = np.where(step > 0, step, 1)
    return (np.round(leaf / step) * step).astype(np.float32)


@pytest.fixture(scope="module")
def sample():
    """16 channels of the machine that kdjax brings along: clean rows, and others."""
    series = load_sample()
    train, test = (part[0].values[:, :16] for part in (series.train, series.test))
    train, faulty = train[:1200].astype(np.float32), test[15900:15980]
    return train[:1000], np.concatenate([train[1000:], faulty], dtype=np.float32)


@pytest.mark.filterwarnings("ignore:KDDetector. X. far from")  # outliers, interpolated
@pytest.mark.parametrize(
    ("kind", "share"),
    [
        ("classifier", 0.72),
        ("memory", 0.3),
        pytest.param("kmeans", 0.65, marks=pytest.mark.slow),
        pytest.param("cnn_forecast", 0.7, marks=pytest.mark.slow),
    ],
)
def test_8_bits_change_scores_of_real_rows_little(kind, share, sample, tmp_path):
    train, test = sample
    fitted = KDDetector(
        window_size=20,
        stride=2,
        detector=kind,
        false_alarm_rate=0.1,
        settings={
            "classifier.networks": 1,
            "classifier.steps": 30,
            "forecast.steps": 60,
        },
    ).fit(train)
    fitted.save(tmp_path / "detector")
    rows, files = tmp_path / "rows.csv", [tmp_path / "whole.onnx", tmp_path / "8.onnx"]
    header = ",".join(fitted.detector_.channels)
    np.savetxt(rows, test, delimiter=",", header=header, comments="", fmt="%.9g")
    for file, quantize in zip(files, ("none", "int8"), strict=True):
        lines = export_file(
            tmp_path / "detector",
            format="onnx",
            output=file,
            data=rows,
            quantize=quantize,
        )
    whole, small = (file.read_bytes() for file in files)
    assert len(small) < share * len(whole)
    windows = np.lib.stride_tricks.sliding_window_view(test, 20, 0).swapaxes(1, 2)
    exact, scored = (load_onnx(file).run(windows) for file in (whole, small))
    shifts = np.abs(scored.window_score - exact.window_score)
    shifts /= np.maximum(1, exact.window_score)
    assert 1e-5 < np.median(shifts) < 0.02
    flips = (scored.alarm != exact.alarm).sum()
    assert flips < 0.03 * len(windows) and exact.alarm.any() and not exact.alarm.all()
    assert f"{np.median(shifts):.2%} (median)" in lines[-2]
    assert f"{flips} of {len(windows)} decisions differ" in lines[-2]
    by_hand = rounded(fitted.detector_)
    wanted = score_windows(by_hand, 0, test, np.arange(len(windows)))
    np.testing.assert_allclose(scored.point_score, wanted, rtol=2e-3, atol=1e-3)


def test_what_has_no_onnx_form_is_refused():
    with pytest.raises(ConfigError, match="'random' has no ONNX form.*autoencoder"):
        onnx_file(make_detector("random"), 0)
    with pytest.raises(ConfigError, match="'random' has no ONNX form.*autoencoder"):
        onnx_file(make_detector("pca+random"), 0)


@pytest.mark.parametrize(
    "kind", ["pca", "mahalanobis", "difference+moving_average", "autoencoder"]
)
def test_a_detector_without_large_weights_is_not_quantised(kind):
    detector = make_detector(kind, Architecture(D, (3,)))
    with pytest.raises(ConfigError, match="no weight has 256 numbers.*remove it"):
        onnx_file(detector, 0, quantize="int8")


def test_a_projection_keeps_32_bits():
    detector = make_detector("pca")
    wide = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0]
    wide = np.tile(wide.astype(np.float32), (60, 1))  # [300, D]: large
    params = detector.model.params | {"components": wide}
    detector = detector._replace(model=detector.model._replace(params=params))
    with pytest.raises(ConfigError, match="numbers to quantise"):
        onnx_file(detector, 0, quantize="int8")


# Damage.

LOADERS = pytest.mark.parametrize(
    ("make", "load"), [(onnx_file, load_onnx), (stablehlo_file, load_stablehlo)]
)


@LOADERS
def test_a_flipped_bit_anywhere_is_noticed(make, load, tmp_path):
    data = make(make_detector("autoencoder", Architecture(D, (3,))), 0)
    path = tmp_path / "file"
    path.write_bytes(data)
    assert load(path).plan.channels[0] == "c0"
    rng = np.random.default_rng(0)
    seal = max(data.find(name) for name in (b"digest", b"sha256"))
    places = {0, len(data) - 1, *range(seal - 4, seal + 70)}
    for place in sorted(places | set(rng.integers(0, len(data), 200).tolist())):
        broken = bytearray(data)
        broken[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(ArtifactError, match="Copy it again, or export"):
            load(bytes(broken))


@LOADERS
def test_a_cut_or_foreign_file_is_refused(make, load, tmp_path):
    data = make(make_detector("mahalanobis"), 0)
    for length in (0, 1, 20, len(data) // 2, len(data) - 1):
        with pytest.raises(ArtifactError, match="is damaged"):
            load(data[:length])
    with pytest.raises(ArtifactError, match="is damaged"):
        load(data + b"\n")
    path = tmp_path / "foreign"
    path.write_bytes(b"\x80\x04pickle or anything else")
    with pytest.raises(ArtifactError, match=f"{path} is damaged or is no .* of kdjax"):
        load(path)
    with pytest.raises(ArtifactError, match="can't be read.*No such file"):
        load(tmp_path / "absent")
    with pytest.raises(ArtifactError, match="can't be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("make", "load"), [(onnx_file, load_onnx), (stablehlo_file, load_stablehlo)]
)
def test_windows_of_another_shape_are_refused_and_none_are_answered(make, load):
    # onnxruntime would end the process.
    detector = make_detector(
        "autoencoder", Architecture(D, (3,), "joint", "repeat", "linear")
    )
    run = load(make(detector, 0)).run
    assert [field.shape for field in run(np.zeros((0, L, D)))] == [
        (0, L), (0,), (0,), (0, L, D)
    ]  # fmt: skip
    assert run(np.zeros((1, L, D))).window_score.shape == (1,)
    for shape in ((2, L, D + 1), (2, L - 1, D), (L, D), (0, L, D - 1)):
        with pytest.raises(DataError, match=rf"takes \[B, {L}, {D}\]"):
            run(np.zeros(shape))


def test_a_foreign_onnx_model_is_refused():
    model = onnx.load_from_string(onnx_file(make_detector("mahalanobis"), 0))
    del model.metadata_props[:]
    with pytest.raises(
        ArtifactError, match="is damaged or is no ONNX detector of kdjax"
    ):
        load_onnx(model.SerializeToString())


def test_a_file_of_a_newer_kdjax_is_refused(monkeypatch):
    monkeypatch.setattr(container, "SCHEMA", 2)
    data = onnx_file(make_detector("mahalanobis"), 0)
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="schema 2, this kdjax reads up to 1"):
        load_onnx(data)


def test_a_huge_file_is_refused_before_it_is_read(monkeypatch, tmp_path):
    path = tmp_path / "huge"
    path.write_bytes(onnx_file(make_detector("mahalanobis"), 0))
    monkeypatch.setattr(container, "MAX_BYTES", 100)
    with pytest.raises(ArtifactError, match="an exported detector has at most 100"):
        load_onnx(path)


def test_a_sealed_file_that_onnxruntime_refuses_is_an_artifact_error():
    content = container.sealed(b"no protobuf" + SEAL + b"0" * 64, SEAL)
    with pytest.raises(ArtifactError, match="onnxruntime .* can't run the file"):
        load_onnx(content)


def test_without_onnxruntime_one_is_told_what_to_install(monkeypatch):
    data = onnx_file(make_detector("mahalanobis"), 0)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r'pip install "kdjax\[onnx\]"'):
        load_onnx(data)
