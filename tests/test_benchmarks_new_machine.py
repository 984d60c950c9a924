"""`benchmarks/new_machine.py`: a teacher from other machines, and the table."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import new_machine


def rows_of(count, *, seed):
    rng = np.random.default_rng(seed)
    return np.sin(np.arange(count)[:, None] / 7 + [0, 1]) + rng.normal(
        0, 0.1, (count, 2)
    )


def test_a_row_has_the_mean_of_the_windows_that_cover_it(monkeypatch):
    monkeypatch.setattr(new_machine, "LENGTH", 9)
    rows = rows_of(600, seed=0)
    scores = rows[:592, 0]  # of the window that begins there
    monkeypatch.setattr(
        new_machine.kdjax, "classifier_scores", lambda params, windows: windows[:, 0, 0]
    )
    found = new_machine.row_scores({}, rows)
    covering = [scores[max(0, i - 8) : min(i, 591) + 1].mean() for i in range(600)]
    np.testing.assert_allclose(found, covering, rtol=1e-5, atol=1e-6)


def test_each_entity_is_new_once_and_the_others_teach(monkeypatch):
    monkeypatch.setattr(new_machine, "OPTIONS", {"networks": 1, "steps": 3})
    taught, fit = [], new_machine.kdjax.fit_classifier

    def fitted(windows, *, teacher=None, **options):
        taught.append((windows.shape, teacher is not None))
        return fit(windows, teacher=teacher, **options)

    monkeypatch.setattr(new_machine.kdjax, "fit_classifier", fitted)
    train = {name: rows_of(300, seed=i) for i, name in enumerate("abc")}
    labels = np.arange(200) > 150
    test = {name: (rows_of(200, seed=9), labels) for name in "ab"}
    done = {("b", 100, 0)}
    found = list(new_machine.lines(train, test, "abc", [100], 0, done))
    assert [(one["entity"], one["rows"], one["seed"]) for one in found] == [
        ("a", 100, 0)
    ]
    kinds = ("alone", "self", "joint", "distilled")
    assert all(0 <= found[0][kind] <= 1 for kind in kinds)
    shapes = [(number, False) for number in (2 * 253, 53, 53 + 2 * 253)]
    assert taught == [
        ((number, 48, 2), teacher) for number, teacher in [*shapes, *[(53, True)] * 2]
    ]
    # A rerun measures what a run that was stopped lacks, and no more.
    again = new_machine.lines(train, test, "abc", [100, 150], 0, done | {("a", 100, 0)})
    measured = [(one["entity"], one["rows"]) for one in again]
    assert measured == [("a", 150), ("b", 150)]


def test_an_entity_that_does_not_teach_is_judged(monkeypatch):
    monkeypatch.setattr(new_machine, "OPTIONS", {"networks": 1, "steps": 2})
    taught, fit = [], new_machine.kdjax.fit_classifier
    monkeypatch.setattr(
        new_machine.kdjax,
        "fit_classifier",
        lambda windows, **options: (
            taught.append(len(windows)) or fit(windows, **options)
        ),
    )
    train = {name: rows_of(300, seed=i) for i, name in enumerate("abc")}
    test = {"c": (rows_of(200, seed=9), np.arange(200) > 150)}
    (found,) = new_machine.lines(train, test, ("a", "b"), [100], 0, set())
    assert found["entity"] == "c"
    assert taught[0] == 2 * 253  # the teacher's: not those of c


def test_the_table_is_of_entities_not_of_seeds():
    found = pd.DataFrame(
        {"entity": [*"aabb"], "rows": 500, "seed": [0, 1, 0, 1],
         "alone": [0.1, 0.3, 0.4, 0.4], "self": 0.5, "joint": 0.25,
         "distilled": [0.2, 0.6, 0.5, 0.7]}
    )  # fmt: skip
    # Gains by entity: 0.2 and 0.2.
    shown = new_machine.table(found).splitlines()[-1]
    assert shown == "| 500 | 2 | 0.300 | 0.500 | 0.250 | 0.500 | +0.200 ± 0.000 |"


def test_a_range_of_0_is_no_division():
    found = new_machine.in_own_range(np.array([[1.0, 5], [3, 5]]))
    assert found.tolist() == [[0, 0], [1, 0]]
