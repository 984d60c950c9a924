"""HitRate and NDCG against scikit-learn, brute force, hand calculation; the document."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from kdjax.data.datasets import load_benchmark, load_sample
from kdjax.errors import DataError
from kdjax.metrics import UndefinedMetricWarning

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
ASD = ROOT / "../shared/data/asd"
sys.path.insert(0, str(ROOT / "benchmarks"))

from blame import hit_rate, interpretation, ndcg


def hits_in_order(order, culprits, percent):
    size = percent * len(culprits) // 100
    return len(set(order[:size]) & set(culprits)) / len(culprits)


def test_hit_rate_by_hand():
    scores = [9.0, 1.0, 8.0, 7.0, 2.0]
    assert hit_rate(scores, [0, 3]) == 0.5
    assert hit_rate(scores, [0, 3], percent=150) == 1.0
    assert hit_rate(scores, [1]) == 0.0
    assert hit_rate(scores, [0, 1, 2, 3, 4]) == 1.0


def test_the_number_looked_at_is_rounded_down():
    scores = [4.0, 3.0, 2.0, 1.0]
    assert hit_rate(scores, [1], percent=150) == 0.0  # 1.5 channels are 1
    assert hit_rate(scores, [1], percent=200) == 1.0
    assert hit_rate(scores, [1, 2, 3], percent=150) == 1.0  # 4.5 channels are 4


@pytest.mark.parametrize("percent", [100, 150])
def test_ties_count_as_the_mean_over_their_orders(percent):
    scores, culprits = [2.0, 5.0, 2.0, 2.0, 1.0], [0, 4]
    found = [
        hits_in_order(order, culprits, percent)
        for order in itertools.permutations(range(5))
        if all(a >= b for a, b in itertools.pairwise([scores[i] for i in order]))
    ]
    assert len(found) == 6
    assert hit_rate(scores, culprits, percent=percent) == pytest.approx(np.mean(found))


@pytest.mark.parametrize("culprits", [[3], [0, 5], [1, 2, 3, 6, 7]])
def test_equal_blame_is_guessing(culprits):
    scores = np.zeros(8)
    assert hit_rate(scores, culprits) == pytest.approx(len(culprits) / 8)


@pytest.mark.parametrize("percent", [100, 150, 300])
@pytest.mark.parametrize("levels", [3, 1000])
def test_ndcg_is_that_of_scikit_learn(percent, levels):
    rng = np.random.default_rng(percent + levels)
    for _ in range(50):
        scores = rng.integers(levels, size=12).astype(float)
        culprits = rng.permutation(12)[: rng.integers(1, 12)]
        truth = np.isin(np.arange(12), culprits).astype(int)
        top = percent * len(culprits) // 100
        wanted = ndcg_score(truth[None], scores[None], k=top)
        assert ndcg(scores, culprits, percent=percent) == pytest.approx(wanted)


def test_the_order_within_counts_for_ndcg_alone():
    above, below = [3.0, 2.0, 1.0], [2.0, 3.0, 1.0]
    assert hit_rate(above, [0, 2]) == hit_rate(below, [0, 2]) == 0.5
    assert ndcg(above, [0, 2]) > ndcg(below, [0, 2])


@pytest.mark.parametrize("measure", [hit_rate, ndcg])
def test_infinite_blame_comes_first(measure):
    assert measure([1.0, np.inf, 1e300], [1]) == 1
    assert measure([np.inf, np.inf, 0.0], [0, 1]) == 1


@pytest.mark.parametrize("measure", [hit_rate, ndcg])
def test_repeated_culprits_count_once_and_one_channel_will_do(measure):
    assert measure([3.0, 2.0, 1.0], [1, 1, 0]) == 1
    assert measure([0.0], [0], percent=150) == 1


@pytest.mark.parametrize("measure", [hit_rate, ndcg])
def test_no_culprit_is_undefined(measure):
    with pytest.warns(UndefinedMetricWarning, match="no channel is at fault"):
        assert np.isnan(measure([1.0, 2.0], []))


@pytest.mark.parametrize("measure", [hit_rate, ndcg])
def test_what_is_refused(measure):
    with pytest.raises(DataError, match="channel 2, but there are .* 0 to 1"):
        measure([1.0, 2.0], [2])
    with pytest.raises(DataError, match="channel -1"):
        measure([1.0, 2.0], [-1])
    with pytest.raises(DataError, match="NaN at position 1"):
        measure([1.0, np.nan], [0])
    with pytest.raises(DataError, match="`percent` is 50: expected at least 100"):
        measure([1.0, 2.0], [0], percent=50)


def test_the_document_has_the_numbers_of_the_results():
    document = (DOCS / "blame.md").read_text("utf-8")
    results = json.loads((DOCS / "results" / "blame.json").read_text("utf-8"))
    assert results.keys() == {"asd", "smd"}
    assert f"`{results['asd']['better']}` is the default" in document
    for found in results.values():
        for row in (*found["rows"], *found["differences"]):
            names = [value for value in row.values() if isinstance(value, str)]
            numbers = [
                "{mean:.3f} ({low:.3f} to {high:.3f})".format(**row[measure])
                for measure in found["measures"]
            ]
            assert f"| {' | '.join(names + numbers)} |" in document


# The published segments.


def test_sample_interpretation_follows_the_labels():
    labels = load_sample().test[0].labels
    segments = interpretation("smd", "", "machine-1-2")
    assert len(segments) == 10
    assert segments[0] == (4629, 4688, (8, 9, 10, 12, 14, 17))
    marked = np.zeros(len(labels), bool)
    for start, stop, channels in segments:
        marked[start:stop] = True
        assert all(0 <= channel < 38 for channel in channels)
    np.testing.assert_array_equal(marked, labels)


@pytest.mark.skipif(not ASD.is_dir(), reason="ASD is not beside the checkout")
def test_asd_interpretation_follows_the_labels():
    data = load_benchmark("asd", root=ASD)
    for series in data.test:
        marked = np.zeros(len(series.labels), bool)
        for start, stop, _ in interpretation("asd", ASD, series.entity):
            marked[start:stop] = True
        np.testing.assert_array_equal(marked, series.labels)


def test_interpretation_that_cannot_be_read(tmp_path):
    path = tmp_path / "interpretation_label/machine-1-1.txt"
    with pytest.raises(DataError, match=r"machine-1-1\.txt does not exist"):
        interpretation("smd", tmp_path, "machine-1-1")
    path.parent.mkdir()
    path.write_text("1-4:2,3\n5-9;1\n", "utf-8")
    with pytest.raises(DataError, match=r"line 2 '5-9;1' is not 'start-end:dim,dim"):
        interpretation("smd", tmp_path, "machine-1-1")
