"""Costs of a detector: what it stores, its file, and a window's time."""

import json
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from kdjax.detection.detector import gaussian_of, scaler_of
from kdjax.export import costs
from kdjax.export.costs import (
    detector_costs,
    numbers,
    window_milliseconds,
)
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.residual import ResidualModel

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")

from kdjax.export.onnx import onnx_file

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")


def model_of(kind):
    """A model of two channels, and the number of its parameters by hand."""
    if kind == "autoencoder":
        architecture = Architecture(2, (3,))
        params = network(architecture).init(jax.random.key(0))
        params = jax.tree.map(np.asarray, params)
        count = sum(len(leaf.ravel()) for leaf in jax.tree.leaves(params))
        return ResidualModel(kind, params, architecture), count
    if kind == "pca":
        params = {"mean": np.zeros(2, "f"), "components": np.ones((1, 2), "f")}
        return ResidualModel(kind, params), 4
    return ResidualModel(kind, {}), 0


@pytest.mark.parametrize("kind", ["autoencoder", "pca", "difference"])
def test_costs_of_networks_and_controls(small, kind):
    model, parameters = model_of(kind)
    detector = small._replace(model=model)
    found = detector_costs(detector, rounds=3)
    stored = [*scaler_of(detector, 0), *gaussian_of(detector, 0)]
    # And τ.
    assert found["numbers"] == parameters + sum(map(np.size, stored)) + 1
    assert found["parameters"] == parameters
    assert found["bytes"] == len(onnx_file(detector, 0))
    assert 0 < found["milliseconds"] < 100
    assert found["reason"] == ""
    json.dumps(found, allow_nan=False)


def test_numbers_grow_with_the_square_of_the_channels(small):
    assert numbers(small) == 2 * 2 + 3 * 2 + 1
    mean, whiten = np.zeros((1, 10)), np.zeros((1, 10, 10))
    gaussians = small.gaussians._replace(mean=mean, whiten=whiten)
    wide = small._replace(channels=tuple("abcdefghij"), gaussians=gaussians)
    assert numbers(wide) == 10 * 10 + 3 * 10 + 1


def test_joined_parts_store_a_normal_of_all_their_errors(small):
    # Scaler 2·2; mean 3·2 and whitening (3·2)² of three parts' errors; τ.
    mean, whiten = np.zeros((1, 6)), np.zeros((1, 6, 6))
    gaussians = small.gaussians._replace(mean=mean, whiten=whiten)
    model = ResidualModel("difference+moving_average+mahalanobis", {})
    joined = small._replace(model=model, gaussians=gaussians)
    assert numbers(joined) == 4 + 6 + 36 + 1


def test_a_model_without_an_onnx_form_says_so(small):
    found = detector_costs(small._replace(model=ResidualModel("random", {})))
    assert (found["bytes"], found["milliseconds"]) == (None, None)
    assert found["numbers"] == 11
    assert "a detector of kind 'random' has no ONNX form" in found["reason"]


def test_without_onnx_the_numbers_are_left(small, monkeypatch):
    monkeypatch.delitem(sys.modules, "kdjax.export.onnx", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    found = detector_costs(small)
    assert (found["bytes"], found["milliseconds"]) == (None, None)
    assert (found["parameters"], found["numbers"]) == (0, 11)
    assert 'pip install "kdjax[onnx]"' in found["reason"]


def test_without_onnxruntime_the_bytes_are_left(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = detector_costs(small)
    assert found["bytes"] > 1000 and found["milliseconds"] is None
    assert "running ONNX files needs onnxruntime" in found["reason"]


def test_other_errors_are_not_taken_for_a_missing_extra(small, monkeypatch):
    def broken(content, rounds):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(costs, "window_milliseconds", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        detector_costs(small)


def test_the_time_is_the_median_of_the_rounds_after_the_first(monkeypatch):
    """Of three warm windows and five timed ones of 1, 2, 3, 4 and 100 ms."""
    ticks = []
    for milliseconds in (500, 500, 500, 3, 100, 1, 4, 2):
        ticks += [0.0, milliseconds / 1e3]
    shapes = []
    plan = SimpleNamespace(window=4, channels=("x", "y"))
    clock = SimpleNamespace(perf_counter=iter(ticks).__next__)
    monkeypatch.setattr(costs, "time", clock)
    monkeypatch.setattr(costs, "load_onnx", lambda content: (plan, shapes.append))
    assert window_milliseconds(b"", rounds=5) == pytest.approx(3.0)
    assert {one.shape for one in shapes} == {(1, 4, 2)} and len(shapes) == 8


def test_the_file_is_that_of_the_first_entity(small, monkeypatch):
    """Its τ is 8; the pooled one is 12."""
    files = []
    monkeypatch.setattr(
        costs, "window_milliseconds", lambda file, _: files.append(file)
    )
    detector_costs(small)
    model = onnx.load_from_string(*files)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert float(about["threshold"]) == 8.0
