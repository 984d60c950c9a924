"""`benchmarks/speed.py`: peers compute the same function; ratios, rows and table."""

import doctest
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.detection.gaussian import Gaussian
from kdjax.detection.scores import point_scores
from kdjax.errors import ConfigError, KdjaxError
from kdjax.models.autoencoder import Architecture, count_parameters, network

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import speed
from timing import processes, work
from timing.processes import Pairs, Turns, take_turns
from timing.work import Size, Unit, Work

HIDDEN = (6, 4)
TINY = Size(steps=1, windows=8, series=5, calls=2)
CONTRACT = {"name", "peer", "ratio", "low", "high"}


@pytest.fixture(scope="module")
def windows():
    """A few windows `[M, L, D]` of the data."""
    rows = work.make_rows(3)
    return work.cut_windows(rows, work.window_starts(rows))


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


def point_scores_of(windows):
    """Point scores of windows `[M, L, D]` by kdjax's functions, one after the other."""
    architecture = Architecture(work.WIDTH, HIDDEN)
    outputs = network(architecture).apply(work.make_params(HIDDEN), windows)
    return point_scores(Gaussian(*work.make_whitening()), jnp.abs(windows - outputs))


def test_doctests():
    for module in (speed, work):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed


KINDS = [
    "series",
    *(
        pytest.param(kind, marks=pytest.mark.slow)
        for kind in ("step", "epoch", "window", "stream", "population")
    ),
]


@pytest.mark.parametrize("kind", KINDS)
def test_kdjax_measures_all_kinds(kind, monkeypatch):
    from timing import kdjax_side

    monkeypatch.setattr(work, "TEACHER", (3,))
    item = Work(kind, kind, HIDDEN, {}, members=2, batch=4)
    unit = kdjax_side.build(item, TINY)
    assert unit.facts["device"] == "cpu"
    assert unit.facts["devices"] == jax.local_device_count()
    if unit.one_off:
        unit.one_off()
    found = unit.run()
    if kind == "population":
        kdjax_side.build(item, TINY, "serial").run()
    if kind == "series":
        rows = work.make_rows(TINY.series)
        windows = work.cut_windows(rows, work.window_starts(rows))
        np.testing.assert_allclose(found, point_scores_of(windows), rtol=1e-4)
    if kind == "stream":
        last = work.make_stream(TINY.calls)[None, -work.WINDOW :]
        np.testing.assert_allclose(found, point_scores_of(last)[0, -1], rtol=1e-4)


def test_data_are_the_same_each_time_and_scaled():
    rows, again = work.make_rows(4), work.make_rows(4)
    np.testing.assert_array_equal(rows, again)
    assert rows.shape == (3 * work.STRIDE + work.WINDOW, work.WIDTH)
    assert rows.dtype == np.float32
    assert rows.min() >= 0 and rows.max() <= 1
    assert work.window_starts(rows).tolist() == [0, 10, 20, 30]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="'step'.*teacher_step.*population_8"):
        work.find_work("step")


def test_epochs_are_whole_batches():
    for size in (work.QUICK, work.FULL):
        assert size.windows % work.BATCH == 0


# Peers compute the same function.


@pytest.fixture
def torch_side():
    torch = pytest.importorskip("torch", reason="needs the extra bench")
    from timing import torch_side

    # Its threads wait for each other in loops, which is slow on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch_side
    torch.set_num_threads(threads)


@pytest.fixture
def onnx_side():
    pytest.importorskip("onnx", reason="needs the extra bench")
    pytest.importorskip("onnxruntime", reason="needs the extra bench")
    from timing import onnx_side

    return onnx_side


def test_torch_reconstructs_and_scores_as_kdjax_does(
    torch_side, params, windows, expected
):
    import torch

    model = torch_side.make_model(params)
    score = torch_side.make_scorer(model, *work.make_whitening())
    with torch.inference_mode():
        outputs = torch_side.network(model).apply(torch.from_numpy(windows))
    np.testing.assert_allclose(outputs.cpu().numpy(), expected[0], atol=1e-5)
    for batch in (2, 3):
        scores = torch_side.score_rows(score, work.make_rows(3), batch)
        np.testing.assert_allclose(scores, expected[1], rtol=1e-4, atol=1e-4)


def test_onnxruntime_scores_as_kdjax_does(onnx_side, params, expected):
    architecture = Architecture(work.WIDTH, HIDDEN)
    graph = onnx_side.score_graph(architecture, params, *work.make_whitening())
    session = onnx_side.make_session(graph, threads=1)
    for batch in (2, 3):
        scores = onnx_side.score_rows(session, work.make_rows(3), batch)
        np.testing.assert_allclose(scores, expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["step", "epoch", "series", "window", "stream"])
def test_torch_measures_all_kinds(torch_side, kind, monkeypatch):
    monkeypatch.setattr(work, "TEACHER", (3,))
    monkeypatch.setattr(work, "SCORING_BATCHES", (2, 3))
    monkeypatch.setattr(work, "BATCH", 4)
    unit = torch_side.build(Work("tiny", kind, (2,), {}), TINY)
    assert unit.one_off is None and unit.facts["library"].startswith("torch")
    result = unit.run()
    if kind == "series":
        assert result.shape == (TINY.series, work.WINDOW)
        assert unit.facts["batch"] in (2, 3)
    elif kind in ("window", "stream"):
        assert result.shape == (1, work.WINDOW)
    else:
        assert unit.run() < result  # a loss that falls


def test_torch_with_cached_targets_trains_the_same(torch_side, monkeypatch):
    import torch

    monkeypatch.setattr(work, "TEACHER", (3,))
    monkeypatch.setattr(work, "BATCH", 4)
    item = Work("tiny", "epoch", (2,), {})
    losses = []
    for side in ("torch", "torch_cached"):
        torch.manual_seed(0)
        unit = torch_side.build(item, TINY, side)
        if unit.one_off:
            unit.one_off()
        torch.manual_seed(0)
        losses.append(unit.run())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("kind", ["series", "window", "stream"])
def test_onnxruntime_measures_what_it_can(onnx_side, kind, monkeypatch):
    monkeypatch.setattr(work, "SCORING_BATCHES", (2, 3))
    unit = onnx_side.build(Work("tiny", kind, (2,), {}), TINY)
    windows = TINY.series if kind == "series" else 1
    assert unit.run().shape == (windows, work.WINDOW)


@pytest.mark.parametrize("side", ["onnx_side", "torch_side"])
def test_a_stream_scores_the_same_rows_for_all(side, request):
    """Each peer's last score is that of the last window."""
    module = request.getfixturevalue(side)
    rows = work.make_stream(TINY.calls)
    assert len(rows) == work.WINDOW - 1 + TINY.calls
    scores = module.build(Work("tiny", "stream", HIDDEN, {}), TINY).run()
    expected = point_scores_of(rows[None, -work.WINDOW :])
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


# Operations and rates.


def test_operations_of_one_layer_by_hand():
    # D = 2, H = 3, L = 5; multiply-adds a step: encoder (2 + 3)·12 = 60, decoder's
    # recurrent product 3·12 = 36, head 3·2 = 6; once: 3·12 = 36.
    assert work.forward_flops(2, (3,), window=5) == 2 * (5 * (60 + 36 + 6) + 36)


def test_operations_of_two_layers_by_hand():
    # Encoder (2 + 4)·16 = 96, (4 + 3)·12 = 84; decoder 36 and once 36, (3 + 4)·16 = 112;
    # head 4·2 = 8.
    step = 96 + 84 + 36 + 112 + 8
    assert work.forward_flops(2, (4, 3), window=5) == 2 * (5 * step + 36)
    training = work.training_flops(2, (4, 3), window=5, batch=7)
    assert training == 3 * 7 * 2 * (5 * step + 36)
    scoring = work.scoring_flops(2, (4, 3), window=5)
    assert scoring == 2 * (5 * step + 36) + 2 * 5 * 2 * 2


@pytest.mark.parametrize("hidden", [(3,), (5, 4), (200, 200)])
def test_parameters_are_those_of_the_network(hidden):
    count = count_parameters(Architecture(work.WIDTH, hidden))
    assert work.parameter_count(work.WIDTH, hidden) == count
    assert work.streamed_bytes(work.WIDTH, hidden, window=10) == 40 * count


def test_operations_of_a_measurement(monkeypatch):
    monkeypatch.setattr(work, "BATCH", 4)
    step = work.training_flops(work.WIDTH, (32,), window=work.WINDOW, batch=4)
    sizes = [("step", step), ("epoch", 2 * step), ("population", 16 * step)]
    for kind, flops in sizes:
        item = Work("any", kind, (32,), {}, members=8 if kind == "population" else 1)
        assert work.unit_flops(item, TINY) == flops


def test_rates_are_work_over_seconds(monkeypatch):
    def two_seconds(function):
        function()
        return 2.0

    monkeypatch.setattr(processes, "MATRIX", 64)
    monkeypatch.setattr(processes, "COPY_BYTES", 4096)
    monkeypatch.setattr(processes, "_seconds", two_seconds)
    assert processes.matrix_rate() == 64**3
    assert processes.copy_bandwidth() == 4096


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
    first, second = speed.make_rows(item, turns, size=TINY)
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
    (row,) = speed.make_rows(item, turns, size=TINY)
    assert row["peer"] == "onnxruntime" and row["ratio"] == 2 and row["met"] is None


def test_without_any_peer_nothing_is_measured():
    sides = {"kdjax": fake(), "torch": fake(start={"missing": "torch"})}
    turns = take_turns(sides, pairs=THREE)
    assert turns.seconds == {} and turns.missing == {"torch": "torch"}
    assert speed.make_rows(work.WORKS["teacher_step"], turns, size=TINY) == []


def test_a_process_that_dies_is_reported_with_its_stderr():
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
        lambda: calls.append("run"), {"library": "x 1"}, lambda: calls.append("one_off")
    )
    processes.serve(lambda: unit, ["warm\n", "go\n", "what\n"], answers.append)
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
                *(sys.executable, "-m", "timing.processes"),
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
    rows = speed.make_rows(item, turns_of(kdjax=[1.0, 1.0], **peers), size=work.QUICK)
    assert [row["peer"] for row in rows] == list(item.targets)
    for row in rows:
        assert row.keys() >= CONTRACT and row["ratio"] == 2
        flops = work.unit_flops(item, work.QUICK)
        assert row["fraction"] == pytest.approx(flops / 1e9)
        assert not any(key.endswith("_ms") for key in row)  # only on a GPU
        assert json.loads(json.dumps(row)) == row
        if item.kind == "epoch":
            assert row["ten_epochs_ratio"] == pytest.approx(20 / 11)
            assert row["one_off_epochs"] == 1


def test_a_gpu_has_times_too():
    turns = turns_of(kdjax=[1.0, 1.0], torch=[2.0, 2.0])
    turns.facts["kdjax"]["device"] = "gpu (any)"
    item = work.WORKS["student_epoch"]
    (row,) = speed.make_rows(item, turns, size=work.QUICK)
    epochs = work.QUICK.windows / work.FULL.windows
    assert row["kdjax_ms"] == pytest.approx(1000 / epochs)
    assert row["peer_ms"] == pytest.approx(2000 / epochs)


def test_the_whole_comparison(monkeypatch, capsys, tmp_path):
    def measure(item, *, quick):
        assert quick
        missing = {"onnxruntime": "onnxruntime"} if item.kind == "series" else {}
        turns = turns_of(kdjax=[1.0, 1.0], torch=[1.2, 1.2])
        return turns._replace(missing=missing)

    monkeypatch.setattr(speed, "measure", measure)
    names = ["teacher_step", "score_series_teacher"]
    output = tmp_path / "speed.json"
    speed.main([*names, "--quick", f"--output={output}"])
    rows = json.loads(output.read_text("utf-8"))
    assert [row["name"] for row in rows] == names
    text = capsys.readouterr().out
    assert "| teacher_step | torch | 1.20 | 1.20–1.20 | 1.3 ! |" in text
    assert "onnxruntime left out: the package onnxruntime is missing" in text
    assert "pip install 'kdjax[bench]'" in text


def test_faults_of_the_command(tmp_path):
    with pytest.raises(ConfigError, match=r"must end in \.json"):
        speed.main([f"--output={tmp_path}/a.csv"])
    (tmp_path / "d.json").mkdir()
    with pytest.raises(ConfigError, match="is a folder: give a file"):
        speed.main([f"--output={tmp_path}/d.json"])
    with pytest.raises(ConfigError, match="nothing to measure is called 'frob'"):
        speed.main(["frob"])
