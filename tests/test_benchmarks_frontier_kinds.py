"""`benchmarks/frontier_kinds.py`: what a stored form holds, costs and does to scores."""

import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("onnx", reason="needs the extra onnx")

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import frontier_kinds
import tsbad

from kdjax.models.autoencoder import Architecture, network
from kdjax.models.baselines import nearest_windows
from kdjax.models.classifier import classifier_scores, count_numbers, init_network
from kdjax.models.residual import ResidualModel, residual_function

D, L, V = 6, 30, 3
KERNELS = {"first": (5 * D, 16), "second": (80, 16), "dense": (64, 16)}


@pytest.fixture(scope="module")
def classifier():
    rng = np.random.default_rng(0)
    networks = [init_network(rng, D) for _ in range(V)]
    networks = jax.tree.map(lambda *own: np.stack(own), *networks)
    zero, one = np.zeros(D, np.float32), np.ones(D, np.float32)
    level = np.float32([0, 1, 0])
    params = {"low": zero, "scale": one, "mean": one / 2, "level": level}
    return ResidualModel("classifier", params | {"networks": networks})


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(1).uniform(size=(40, L, D)).astype(np.float32)


def test_numbers_and_bytes_of_a_classifier_are_counted_by_hand(classifier):
    every = count_numbers(D, V)
    assert classifier.parameters == every
    kernels = V * sum(rows * outputs for rows, outputs in KERNELS.values())
    others = every - kernels
    scales = V * 16 * len(KERNELS)
    half = V * sum(
        min(rows, outputs) // 2 * (rows + outputs) for rows, outputs in KERNELS.values()
    )
    wanted = {
        "float32": (every, 4 * every),
        "float16": (every, 2 * kernels + 4 * others),
        "int8": (every + scales, kernels + 4 * scales + 4 * others),
        "pruned 50 %": (kernels / 2 + others, 3 * kernels + 4 * others),
        "pruned 80 %": (0.2 * kernels + others, 1.2 * kernels + 4 * others),
        "half rank": (half + others, 4 * (half + others)),
    }
    for form, (numbers, size) in wanted.items():
        _, *found = frontier_kinds.stored(classifier, form)
        # A share of a kernel is a whole number of weights.
        near = V * len(KERNELS) * 6 if "pruned" in form else 0
        np.testing.assert_allclose(found, (numbers, size), atol=near)


def test_scores_of_stored_classifiers(classifier, windows):
    exact = np.asarray(classifier_scores(classifier.params, windows))
    shifts = {}
    for form in frontier_kinds.FORMS:
        model, _, _ = frontier_kinds.stored(classifier, form)
        scores = np.asarray(classifier_scores(model.params, windows))
        shifts[form] = np.abs(scores / exact - 1).max()
    assert shifts["float32"] == 0
    assert 0 < shifts["float16"] < 1e-3 < shifts["int8"] < 0.05
    assert min(shifts[form] for form in frontier_kinds.NETWORK_FORMS) > 0.01


def test_forms_leave_what_they_promise(classifier):
    second = classifier.params["networks"]["second"]
    for share in (0.5, 0.8):
        model, _, _ = frontier_kinds.stored(
            classifier, f"pruned {share:.0%}"[:-1] + " %"
        )
        changed = model.params["networks"]
        for own, before in zip(changed["second"], second, strict=True):
            assert np.isclose((own == 0).mean(), share, atol=1e-3)
            assert np.abs(before[own == 0]).max() < np.abs(own[own != 0]).min()
            np.testing.assert_array_equal(own[own != 0], before[own != 0])
        np.testing.assert_array_equal(
            changed["head"], classifier.params["networks"]["head"]
        )
    model, _, _ = frontier_kinds.stored(classifier, "half rank")
    for own in model.params["networks"]["second"]:
        assert np.linalg.matrix_rank(own.reshape(-1, 16), tol=1e-4) == 8


def test_fewer_networks_are_the_first_and_score_their_mean(classifier, windows):
    one, two = (frontier_kinds.first_networks(classifier, count) for count in (1, 2))
    assert one.parameters == count_numbers(D, 1)
    last = two._replace(
        params=two.params
        | {
            "level": two.params["level"][1:],
            "networks": {n: v[1:] for n, v in two.params["networks"].items()},
        }
    )
    scores = [classifier_scores(model.params, windows) for model in (one, last, two)]
    np.testing.assert_allclose((scores[0] + scores[1]) / 2, scores[2], rtol=1e-5)


def test_a_memory_is_cut_and_rounded(windows):
    model = ResidualModel("memory", {"windows": windows})
    assert frontier_kinds.fewer_windows(model, 10).params["windows"].shape == (10, L, D)
    assert frontier_kinds.centres(model, 7).params["windows"].shape == (7, L, D)
    small, numbers, size = frontier_kinds.stored(model, "int8")
    assert numbers == windows.size + 2 * L * D and size == windows.size + 8 * L * D
    steps = np.abs(windows - windows[:1]).max(axis=0) / 127
    error = np.abs(small.params["windows"] - windows)
    assert (error <= steps / 2 + 1e-6).all() and error.max() > 0.3 * steps.max()
    found = nearest_windows(small.params, windows + 0.01)
    wanted = nearest_windows(model.params, windows + 0.01)
    assert np.abs(found - wanted).mean() < 0.01


def test_an_autoencoder_in_16_bits_is_near_that_of_32(windows):
    shape = Architecture(D, (24,))
    params = network(shape).init(jax.random.key(0))
    model = ResidualModel("autoencoder", params, shape)
    # Of the encoder and the decoder; that of the head is small.
    kernels = (D + 24) * 96 + (24 + 24) * 96
    half, numbers, size = frontier_kinds.stored(model, "float16")
    assert numbers == model.parameters and size == 4 * numbers - 2 * kernels
    score = residual_function("autoencoder", shape)
    found, wanted = score(half.params, windows), score(model.params, windows)
    assert 0 < np.abs(found - wanted).max() < 1e-3


def test_the_front_has_what_nothing_cheaper_reaches():
    costs, quality = [1, 2, 3, 3, 4], [0.5, 0.4, 0.6, 0.7, 0.7]
    front = tsbad.on_front(costs, quality)
    assert front.tolist() == [True, False, False, True, False]


def test_a_run_continues_and_its_table_marks_the_front(tmp_path, monkeypatch):
    monkeypatch.setattr(frontier_kinds, "BASES", ("mahalanobis", "kmeans"))
    rng = np.random.default_rng(0)
    rows = np.sin(np.arange(900) / 9)[:, None] + 0.2 * rng.normal(size=(900, 2))
    labels = np.zeros(900, bool)
    labels[700:730] = True
    rows[700:730] += 3
    item = tsbad.Item("one", "SMD", rows, labels, 600, 30)
    path = tmp_path / "run.jsonl"
    frontier_kinds.run([item], path, [0])
    text = path.read_text()
    frontier_kinds.run([item], path, [0])
    assert path.read_text() == text
    lines = tsbad.read(path)
    assert [(one["name"], one["form"]) for one in lines] == [
        ("mahalanobis", "float32"), *(("kmeans", f) for f in ("float32", "float16", "int8"))
    ]  # fmt: skip
    # Scaler and Gaussian of two channels, and τ.
    assert lines[0]["numbers"] == 2 * 2 + 2 + 2 * 2 + 1 and lines[0]["bytes"] == 4 * 11
    assert lines[1]["numbers"] == 11 + 20 * 50 * 2
    assert all(0.5 < one["vus_pr"] <= 1 for one in lines)
    table = frontier_kinds.means([*lines, lines[0] | {"file": "unfinished"}])
    assert (table["series"] == 1).all() and table["front"].iloc[0]
    assert frontier_kinds.markdown(table).count("\n") == 5
    assert frontier_kinds.plot(table).axes


def test_the_document_has_the_table_of_its_run():
    results = Path(__file__).parent.parent / "docs" / "results"
    table = pd.read_csv(results / "frontier_kinds.csv")
    document = (results / "frontier_kinds.md").read_text("utf-8")
    assert frontier_kinds.markdown(table) in document
    found = tsbad.on_front(table["bytes"], table["vus_pr"].round(3))
    assert (found == table["front"]).all()
