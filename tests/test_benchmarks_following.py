"""The comparison of fixed and following thresholds: its choice, its counts, its document."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def rolling(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("following")


def test_counts_by_hand(rolling):
    labels = np.array([True, True, False, False, False])
    alarms = np.array([True, False, True, False, False])
    assert rolling.counts(labels, alarms) == {
        "f1": 0.5, "clean_alarms": 1 / 3, "hits": 1, "alarms": 2, "positives": 2,
    }  # fmt: skip
    assert rolling.counts(labels, ~np.ones(5, bool))["f1"] == 0


def own(f1):
    return {"f1": f1, "clean_alarms": 0.0, "hits": 1, "alarms": 1, "positives": 1}


def test_a_share_is_chosen_on_the_other_entities(rolling):
    first, second = ("m", "fixed", 0.1), ("m", "fixed", 0.2)
    found = {
        first: {"a": own(1.0), "b": own(0.1), "c": own(0.1)},
        second: {"a": own(0.0), "b": own(0.3), "c": own(0.3)},
        ("m", "following", 0.1): {"a": own(0.9)},
    }
    shares, chosen = rolling.left_out(found, "m", "fixed")
    assert shares == {"a": 0.2, "b": 0.1, "c": 0.1}  # 0.1 looks best with `a` only
    assert [chosen[name]["f1"] for name in "abc"] == [0.0, 0.1, 0.1]
    # A share that an entity's calibration is too short for is no choice.
    del found[first]["c"]
    assert set(rolling.left_out(found, "m", "fixed")[0].values()) <= {0.2}


def test_the_document_says_what_was_measured():
    found = json.loads((ROOT / "docs/results/following_smd.json").read_text("utf-8"))
    document = (ROOT / "docs" / "thresholds.md").read_text("utf-8")
    for row in found["left_out"]:
        (line,) = [
            line
            for line in document.splitlines()
            if line.startswith(f"| {row['model']} | {row['fixed']['f1']:.3f}")
        ]
        gain = row["following_minus_fixed"]
        assert f"{row['fixed']['pooled_f1']:.3f}" in line
        assert all(
            f"{row['following'][key]:.3f}" in line for key in ("f1", "pooled_f1")
        )
        assert (
            f"{gain['difference']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
            in line
        )
        f1 = [
            one["f1"]
            for one in found["entities"][f"{row['model']} following 0.1"].values()
        ]
        (mean,) = [
            mean["f1"]
            for mean in found["means"]
            if (mean["model"], mean["rule"], mean["share"])
            == (row["model"], "following", 0.1)
        ]
        assert mean == pytest.approx(np.mean(f1), abs=1e-12)


@pytest.mark.parametrize("name", ["smd", "asd", "jumpstarter2", "smap", "msl"])
def test_the_document_has_the_teacher_on_each_collection(name):
    found = json.loads(
        (ROOT / f"docs/results/following_{name}.json").read_text("utf-8")
    )
    document = (ROOT / "docs" / "thresholds.md").read_text("utf-8")
    (row,) = [row for row in found["left_out"] if row["model"] == "teacher"]
    assert row["one_share"] == 0.1
    chosen = ", ".join(
        f"{float(share):.0%}: {number}".replace("%", " %")
        for share, number in row["following"]["chosen"].items()
    )
    gains = (
        "{difference:+.3f} ({low:+.3f} to {high:+.3f})".format(**row[gain])
        for gain in ("following_minus_fixed", "following_minus_fixed_at_one_share")
    )
    cells = (
        f"{row['fixed']['f1']:.3f}",
        f"{row['following']['f1']:.3f} ({chosen})",
        *(gain.replace("-", "−") for gain in gains),
    )
    label = {"jumpstarter2": "JumpStarter2"}.get(name, name.upper())
    (line,) = re.findall(
        rf"^\| {label} \(\d+ \w+\) \| (.*) \|$", document, re.MULTILINE
    )
    assert line == " | ".join(cells)
