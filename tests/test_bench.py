"""The comparison: peers compute what kdjax does, and ratios are what they should be."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from kdjax.bench import (
    floor,
    ours,
    run,
    table,
    work,
    worker,
)
from kdjax.bench.interleave import Pairs, Turns, take_turns
from kdjax.bench.work import Size, Unit, Work
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.scores import point_scores
from kdjax.errors import ConfigError, KdjaxError
from kdjax.models.autoencoder import Architecture, count_parameters, network

HIDDEN = (6, 4)
TINY = Size(steps=1, windows=8, series=5, calls=2)
CONTRACT = {"name", "peer", "ratio", "low", "high"}


@pytest.fixture(scope="module")
def windows():
    """A few windows `[M, L, D]` of the data."""
    data = work.make_data(3)
    return data.rows[data.starts[:, None] + np.arange(work.WINDOW)]


@pytest.fixture(scope="module")
def params():
    """Parameters of a tiny network with biases that are not 0."""
    rng = np.random.default_rng(3)
    values = work.make_params(HIDDEN)
    return {
        name: {
            part: array + rng.normal(scale=0.1, size=array.shape).astype(np.float32)
            for part, array in layer.items()
        }
        for name, layer in values.items()
    }


@pytest.fixture(scope="module")
def expected(params, windows):
    """What kdjax makes of them: reconstruction and point scores."""
    architecture = Architecture(work.WIDTH, HIDDEN)
    outputs = network(architecture).apply(params, jnp.asarray(windows))
    gaussian = Gaussian(*work.make_whitening())
    return np.asarray(outputs), np.asarray(
        point_scores(gaussian, jnp.abs(windows - outputs))
    )


@pytest.mark.parametrize("hidden", [HIDDEN, (3,)])
def test_parameters_have_the_networks_shapes(hidden):
    init = network(Architecture(work.WIDTH, hidden)).init
    expected = jax.eval_shape(init, jax.random.key(0))
    found = jax.tree.map(jnp.asarray, work.make_params(hidden))
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}


KINDS = ["step", "epoch", "series", "window", "stream", "population"]


@pytest.mark.parametrize("kind", KINDS)
def test_kdjax_measures_all_kinds(kind, monkeypatch):
    monkeypatch.setattr(work, "BATCH", 4)
    monkeypatch.setattr(work, "TEACHER", (3,))
    item = Work(kind, kind, HIDDEN, {}, members=2)
    monkeypatch.setitem(work.WORKS, kind, item)
    monkeypatch.setattr(work, "choose_size", lambda quick: TINY)
    unit = ours.build(kind, quick=True)
    assert unit.facts["device"] == "cpu" and unit.facts["devices"] == 8
    if unit.one_off:
        unit.one_off()
    found = unit.run()
    if kind == "population":
        ours.build_serial(kind, quick=True).run()
    if kind == "series":
        data = work.make_data(TINY.series)
        windows = data.rows[data.starts[:, None] + np.arange(work.WINDOW)]
        architecture = Architecture(work.WIDTH, HIDDEN)
        params, gaussian = work.make_params(HIDDEN), Gaussian(*work.make_whitening())
        errors = jnp.abs(windows - network(architecture).apply(params, windows))
        np.testing.assert_allclose(found, point_scores(gaussian, errors), rtol=1e-4)


def test_data_are_the_same_each_time_and_scaled():
    data, again = work.make_data(4), work.make_data(4)
    np.testing.assert_array_equal(data.rows, again.rows)
    assert data.rows.shape == (3 * work.STRIDE + work.WINDOW, work.WIDTH)
    assert data.rows.dtype == np.float32
    assert data.rows.min() >= 0 and data.rows.max() <= 1
    assert data.starts[-1] + work.WINDOW == len(data.rows)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="'step'.*teacher_step.*population_8"):
        work.find_work("step")


def test_epochs_are_whole_batches():
    for size in (work.QUICK, work.FULL):
        assert size.windows % work.BATCH == 0


# Peers compute the same function.


@pytest.fixture
def torch_peer():
    torch = pytest.importorskip("torch", reason="needs the extra bench")
    from kdjax.bench import torch_peer

    # Its threads wait for each other in loops, which is slow on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch_peer
    torch.set_num_threads(threads)


@pytest.fixture
def onnx_peer():
    pytest.importorskip("onnx", reason="needs the extra bench")
    pytest.importorskip("onnxruntime", reason="needs the extra bench")
    from kdjax.bench import onnx_peer

    return onnx_peer


def test_torch_reconstructs_and_scores_as_kdjax_does(
    torch_peer, params, windows, expected
):
    import torch

    model = torch_peer.make_model(params)
    score = torch_peer.make_scorer(model, *work.make_whitening())
    with torch.inference_mode():
        outputs = torch_peer.reconstruct(model, torch.from_numpy(windows))
    np.testing.assert_allclose(outputs.cpu().numpy(), expected[0], atol=1e-5)
    for batch in (2, 3):
        scores = torch_peer.score_rows(score, work.make_data(3).rows, batch)
        np.testing.assert_allclose(scores, expected[1], rtol=1e-4, atol=1e-4)


def test_onnxruntime_scores_as_kdjax_does(onnx_peer, params, expected):
    architecture = Architecture(work.WIDTH, HIDDEN)
    graph = onnx_peer.score_graph(architecture, params, *work.make_whitening())
    session = onnx_peer.make_session(graph, threads=1)
    for batch in (2, 3):
        scores = onnx_peer.score_data(session, work.make_data(3), batch)
        np.testing.assert_allclose(scores, expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["step", "epoch", "series", "window", "stream"])
def test_torch_measures_all_kinds(torch_peer, kind, monkeypatch):
    monkeypatch.setattr(work, "TEACHER", (3,))
    monkeypatch.setattr(work, "SCORING_BATCHES", (2, 3))
    monkeypatch.setattr(work, "BATCH", 4)
    unit = torch_peer.build(Work("tiny", kind, (2,), {}), size=TINY)
    assert unit.one_off is None and unit.facts["library"].startswith("torch")
    result = unit.run()
    if kind == "series":
        assert result.shape == (TINY.series, work.WINDOW)
        assert unit.facts["batch"] in (2, 3)
    elif kind in ("window", "stream"):
        assert result.shape == (1, work.WINDOW)
    else:
        assert unit.run() < result  # a loss that falls


def test_torch_with_cached_targets_trains_the_same(torch_peer, monkeypatch):
    import torch

    monkeypatch.setattr(work, "TEACHER", (3,))
    monkeypatch.setattr(work, "BATCH", 4)
    item = Work("tiny", "epoch", (2,), {})
    losses = []
    for cached in (False, True):
        torch.manual_seed(0)
        unit = torch_peer.build(item, size=TINY, cached=cached)
        if cached:
            unit.one_off()
        torch.manual_seed(0)
        losses.append(unit.run())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("kind", ["series", "window", "stream"])
def test_onnxruntime_measures_what_it_can(onnx_peer, kind, monkeypatch):
    monkeypatch.setattr(work, "SCORING_BATCHES", (2, 3))
    unit = onnx_peer.build(Work("tiny", kind, (2,), {}), size=TINY)
    windows = TINY.series if kind == "series" else 1
    assert unit.run().shape == (windows, work.WINDOW)


def test_a_stream_scores_the_same_rows_for_all(onnx_peer, torch_peer):
    """Each peer's last score is that of the last window."""
    item = Work("tiny", "stream", HIDDEN, {})
    pytest.importorskip("onnxruntime")
    rows = work.make_stream(TINY.calls)
    assert len(rows) == work.WINDOW - 1 + TINY.calls
    theirs = [peer.build(item, size=TINY).run() for peer in (onnx_peer, torch_peer)]
    architecture = Architecture(work.WIDTH, HIDDEN)
    params, gaussian = work.make_params(HIDDEN), Gaussian(*work.make_whitening())
    last = rows[None, -work.WINDOW :]
    errors = jnp.abs(last - network(architecture).apply(params, last))
    expected = np.asarray(point_scores(gaussian, errors))
    for scores in theirs:
        np.testing.assert_allclose(scores, expected, rtol=1e-4)
    np.testing.assert_allclose(
        ours._stream(item, TINY).run(), expected[0, -1], rtol=1e-4
    )


# The floor.


def test_operations_of_one_layer_by_hand():
    # D = 2, H = 3, L = 5; multiply-adds a step: encoder (2 + 3)·12 = 60, decoder's
    # recurrent product 3·12 = 36, head 3·2 = 6; once: 3·12 = 36.
    assert floor.forward_flops(2, (3,), window=5) == 2 * (5 * (60 + 36 + 6) + 36)
    each = floor.forward_flops(2, (3,), window=5, projection="each")
    assert each == 2 * 5 * (60 + 36 + 36 + 6)


def test_operations_of_two_layers_by_hand():
    # Encoder (2 + 4)·16 = 96, (4 + 3)·12 = 84; decoder 36 and once 36, (3 + 4)·16 = 112;
    # head 4·2 = 8.
    step = 96 + 84 + 36 + 112 + 8
    assert floor.forward_flops(2, (4, 3), window=5) == 2 * (5 * step + 36)
    training = floor.training_flops(2, (4, 3), window=5, batch=7)
    assert training == 3 * 7 * 2 * (5 * step + 36)
    scoring = floor.scoring_flops(2, (4, 3), window=5)
    assert scoring == 2 * (5 * step + 36) + 2 * 5 * 2 * 2


@pytest.mark.parametrize("hidden", [(3,), (5, 4), (200, 200)])
def test_parameters_are_those_of_the_network(hidden):
    count = count_parameters(Architecture(work.WIDTH, hidden))
    assert floor.parameter_count(work.WIDTH, hidden) == count
    assert floor.streamed_bytes(work.WIDTH, hidden, window=10) == 40 * count


def test_operations_of_a_measurement(monkeypatch):
    monkeypatch.setattr(work, "BATCH", 4)
    step = floor.training_flops(work.WIDTH, (32,), window=work.WINDOW, batch=4)
    sizes = [("step", step), ("epoch", 2 * step), ("population", 16 * step)]
    for kind, flops in sizes:
        item = Work("any", kind, (32,), {}, members=8 if kind == "population" else 1)
        assert table.unit_flops(item, size=TINY) == flops


def test_rates_are_work_over_seconds(monkeypatch):
    def two_seconds(function):
        function().block_until_ready()
        return 2.0

    monkeypatch.setattr(floor, "MATRIX", 64)
    monkeypatch.setattr(floor, "COPY_BYTES", 4096)
    monkeypatch.setattr(floor, "_best_seconds", two_seconds)
    assert floor.measure_rates() == floor.Rates(64**3, 4096)


# Turns.

FAKE = """
import json, sys
answers = json.loads(sys.argv[1])
print(json.dumps(answers["start"]), flush=True)
for line in sys.stdin:
    command = line.strip()
    if command not in answers:
        sys.exit("fake: no answer to " + command)
    values = answers[command]
    print(json.dumps(values.pop(0) if isinstance(values, list) else values), flush=True)
"""
READY = {"ready": True, "device": "cpu"}


def fake(**answers):
    """The command of a process that answers as told."""
    answers = {"start": {"built": True}, "warm": READY} | answers
    return [sys.executable, "-S", "-c", FAKE, json.dumps(answers)]


def seconds(*values):
    return [{"seconds": value} for value in values]


THREE = Pairs(least=3, most=3, seconds=0.0, longest=60.0)


def test_turns_pair_the_sides():
    turns = take_turns(
        {
            "kdjax": fake(go=seconds(1, 2, 4), rate={"flops": 1e9, "bandwidth": 2e9}),
            "torch": fake(go=seconds(2, 4, 8)),
            "onnxruntime": fake(go=seconds(3, 2, 2)),
        },
        pairs=THREE,
        rated=["kdjax"],
    )
    assert turns.seconds["torch"] == [2, 4, 8]
    assert turns.facts["torch"] == READY and turns.missing == {}
    assert turns.rates == 2 * [{"flops": 1e9, "bandwidth": 2e9}]
    item = Work("tiny", "series", (2,), {"torch": 1.5, "onnxruntime": 1.5})
    first, second = table.make_rows(item, turns, size=TINY)
    assert (first["ratio"], first["low"], first["high"]) == (2, 2, 2) and first["met"]
    assert (second["ratio"], second["low"], second["high"]) == (1, 0.75, 2)
    assert not second["met"] and first["pairs"] == second["pairs"] == 3


def test_rounds_end_when_time_is_over():
    sides = {name: fake(go={"seconds": 1}) for name in ("kdjax", "torch")}
    turns = take_turns(sides, pairs=Pairs(least=2, most=9, seconds=0.0, longest=60.0))
    assert len(turns.seconds["kdjax"]) == 2
    turns = take_turns(sides, pairs=Pairs(least=5, most=9, seconds=0.0, longest=0.0))
    assert len(turns.seconds["kdjax"]) == 1


def test_a_missing_peer_becomes_a_note():
    turns = take_turns(
        {
            "kdjax": fake(go={"seconds": 1}),
            "torch": fake(start={"missing": "torch"}),
            "onnxruntime": fake(go={"seconds": 2}),
        },
        pairs=THREE,
    )
    assert turns.missing == {"torch": "torch"}
    item = Work("tiny", "series", (2,), {"torch": 1.5, "onnxruntime": None})
    (row,) = table.make_rows(item, turns, size=TINY)
    assert row["peer"] == "onnxruntime" and row["ratio"] == 2 and row["met"] is None
    (note,) = run.missing_notes(turns.missing)
    assert "torch left out" in note and "kdjax[bench]" in note


def test_without_any_peer_nothing_is_measured():
    sides = {"kdjax": fake(), "torch": fake(start={"missing": "torch"})}
    turns = take_turns(sides, pairs=THREE)
    assert turns.seconds == {} and turns.missing == {"torch": "torch"}
    assert table.make_rows(work.WORKS["teacher_step"], turns, size=TINY) == []


def test_a_process_that_dies_is_told_with_its_last_words():
    sides = {"kdjax": fake(go=seconds(1)), "torch": fake()}
    with pytest.raises(KdjaxError, match="torch ended.*\n.*fake: no answer to go"):
        take_turns(sides, pairs=THREE)


def test_an_answer_that_is_no_json_is_an_error():
    command = [sys.executable, "-S", "-c", "print('hello'); input()"]
    with pytest.raises(KdjaxError, match="torch answered 'hello'"):
        take_turns({"kdjax": fake(), "torch": command}, pairs=THREE)


# The worker.


def test_a_worker_answers_its_commands():
    calls, answers = [], []
    unit = Unit(
        lambda: calls.append("run"), lambda: calls.append("one_off"), {"library": "x 1"}
    )
    worker.serve(lambda: unit, ["warm\n", "go\n", "what\n"], answers.append)
    assert calls == ["one_off", "one_off", "run", "run"]
    assert answers[0]["ready"] and answers[0]["library"] == "x 1"
    assert answers[0]["one_off_seconds"] >= 0 and answers[1]["seconds"] >= 0
    assert answers[2] == {"unknown": "what"}


def test_a_worker_process_keeps_stdout_clean(tmp_path, monkeypatch):
    """A library that can't be imported, and one that prints, as a process sees them."""
    module = "print('noise')\nraise ModuleNotFoundError('no', name='torch')\n"
    (tmp_path / "torch.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    turns = take_turns(
        {
            "kdjax": fake(),
            "torch": [
                *(sys.executable, "-m", "kdjax.bench.worker"),
                *("torch", "teacher_step", "--quick"),
            ],
        },
        pairs=THREE,
    )
    assert turns.missing == {"torch": "torch"}


# Rows and table.


def turns_of(**seconds):
    """Turns of two pairs on a device of round rates."""
    facts = {"kdjax": {"device": "cpu", "one_off_seconds": 1.0}, "torch": {}}
    rates = [{"flops": 1e9, "bandwidth": 1e9}]
    return Turns(seconds, facts, {}, rates)


@pytest.mark.parametrize("item", work.WORKS.values(), ids=lambda item: item.name)
def test_rows_have_what_others_read(item):
    peers = {peer: [2.0, 2.0] for peer in item.targets}
    rows = table.make_rows(item, turns_of(kdjax=[1.0, 1.0], **peers), size=work.QUICK)
    assert [row["peer"] for row in rows] == list(item.targets)
    for row in rows:
        assert row.keys() >= CONTRACT and row["ratio"] == 2
        assert row["fraction"] == pytest.approx(
            table.unit_flops(item, size=work.QUICK) / 1e9
        )
        assert not any(key.endswith("_ms") for key in row)  # only on a GPU
        assert json.loads(json.dumps(row)) == row
        if item.kind == "epoch":
            assert row["ten_epochs_ratio"] == pytest.approx(20 / 11)
            assert row["one_off_epochs"] == 1


def test_a_gpu_has_times_too():
    turns = turns_of(kdjax=[1.0, 1.0], torch=[2.0, 2.0])
    turns.facts["kdjax"]["device"] = "gpu (any)"
    item = work.WORKS["student_epoch"]
    (row,) = table.make_rows(item, turns, size=work.QUICK)
    epochs = work.QUICK.windows / work.FULL.windows
    assert row["kdjax_ms"] == pytest.approx(1000 / epochs)
    assert row["peer_ms"] == pytest.approx(2000 / epochs)


def test_the_whole_comparison(monkeypatch):
    def measure(item, *, quick):
        missing = {"onnxruntime": "onnxruntime"} if item.kind == "series" else {}
        turns = turns_of(kdjax=[1.0, 1.0], torch=[1.2, 1.2])
        return turns._replace(missing=missing)

    monkeypatch.setattr(run, "measure", measure)
    console = Console(record=True, width=80)
    names = ["teacher_step", "score_series_teacher"]
    result = run.bench(quick=True, names=names, console=console)
    assert [row["name"] for row in result["rows"]] == names
    assert "jax" in result["environment"]["versions"]
    text = console.export_text()
    assert "1.20" in text and "1.3 !" in text
    assert "onnxruntime left out" in text and len(result["notes"]) == 1


def test_the_whole_comparison_refuses_unknown_names():
    with pytest.raises(ConfigError, match="nothing"):
        run.bench(quick=True, names=["nothing"], console=Console(quiet=True))
