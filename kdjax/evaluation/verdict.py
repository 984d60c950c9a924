"""What a run's numbers say, in plain words and not more than they say.

The paper's abstract claims that the student keeps the teacher's performance. This
module puts that claim, and two harder ones, to the rows of results.json: do the
networks beat trivial controls, and does the student beat the same network trained
alone? Before them stands what to take, where the run was asked (`recommendation`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kdjax.evaluation.intervals import NETWORKS, ORACLE, is_control
from kdjax.evaluation.recommendation import MARGIN, listed, signed
from kdjax.evaluation.tables import Results, label_free_method, parameters

CAUTION = (
    "These are the numbers of one run: without repeats, differences of a few "
    "hundredths are not evidence."
)
ENTITIES_ONLY = "The intervals tell of other entities, not of another training."


class _Scores(NamedTuple):
    """Mean F1 over entities by model, under a threshold, and the words that name it."""

    rule: str
    threshold: str
    f1: dict[str, float]


def verdict(results: Results) -> str:
    """One paragraph: best models, controls, what distillation brought, and a caution.

    It begins with the recommendation, if `results` has one, and then leaves out what
    that has said. What distillation brought comes with its interval over entities, if
    `results` has `paired` differences.
    """
    method = label_free_method(results)
    measures = [
        _Scores(rule, words, _mean_f1(results, rule))
        for rule, words in (
            (ORACLE, "thresholds chosen on the test labels"),
            (method, f"label-free {method} thresholds"),
        )
    ]
    measures = [measure for measure in measures if measure.f1]
    recommendation = results.get("recommendation") or {}
    sentences = [recommendation.get("text", "")]
    if not measures:
        sentences.append(
            "No F1 is defined on this test data (no labels, or nothing labelled "
            "anomalous), so this run does not show how well any model detects."
        )
        return " ".join(filter(None, sentences))
    for measure in measures:
        # The recommendation names the best under the label-free threshold.
        told = measure.rule == method and recommendation.get("best") is not None
        sentences.append(_compared(measure, told))
    paired = _paired(results)
    sentences += [_distilled(measures, paired), _size(results, measures[0]), CAUTION]
    if any(row["low"] is not None for row in paired.values()):
        sentences.append(ENTITIES_ONLY)
    return " ".join(filter(None, sentences))


def _mean_f1(results: Results, threshold: str) -> dict[str, float]:
    return {
        row["model"]: row["f1"]
        for row in results["rows"]
        if row["threshold"] == threshold
        and (row["scope"], row["level"]) == ("per_entity_mean", "window")
        and row["f1"] is not None
    }


def _compared(measure: _Scores, told: bool) -> str:
    """The best model and the best control, or the controls alone if that is told."""
    controls = _controls(measure)
    if told:
        return f"With {measure.threshold}, {controls}." if controls else ""
    return ": ".join(filter(None, [_best(measure), controls])) + "."


def _best(measure: _Scores) -> str:
    top = max(measure.f1.values())
    names = [name for name, f1 in measure.f1.items() if top - f1 < MARGIN]
    what = f"With {measure.threshold}, "
    if len(names) == 1:
        return f"{what}{names[0]} has the best mean F1 over entities, {top:.3f}"
    return (
        f"{what}{listed(names)} share the best mean F1 over entities (within {MARGIN} "
        f"of {top:.3f})"
    )


def _controls(measure: _Scores) -> str:
    networks = {name: f1 for name, f1 in measure.f1.items() if name in NETWORKS}
    controls = {name: f1 for name, f1 in measure.f1.items() if is_control(name)}
    if not networks or not controls:
        return ""
    network = max(networks, key=networks.__getitem__)
    control = max(controls, key=controls.__getitem__)
    gap = networks[network] - controls[control]
    pair = f"({network} {networks[network]:.3f}, {control} {controls[control]:.3f})"
    if gap >= MARGIN:
        return f"the best network is {gap:.3f} above the best trivial control {pair}"
    if gap > -MARGIN:
        return f"a trivial control matches the best network {pair}"
    return f"a trivial control beats every network by {-gap:.3f} {pair}"


def _paired(results: Results) -> dict[str, Mapping[str, Any]]:
    """Student minus student_alone in F1 of windows, by threshold."""
    return {
        row["threshold"]: row
        for row in results.get("paired") or ()
        if (row["model"], row["against"]) == ("student", "student_alone")
        and (row["level"], row["metric"]) == ("window", "f1")
        and row["difference"] is not None
    }


def _distilled(measures: list[_Scores], paired: dict[str, Mapping[str, Any]]) -> str:
    both = [m for m in measures if {"student", "student_alone"} <= m.f1.keys()]
    if not both:
        return ""
    says = []
    for measure in both:
        student, alone = measure.f1["student"], measure.f1["student_alone"]
        gap, interval = student - alone, ""
        if measure.rule in paired:
            gap = paired[measure.rule]["difference"]
            interval = _interval(paired[measure.rule])
        says.append(
            f"{_gap(gap)} ({student:.3f} against {alone:.3f}, {measure.threshold}"
            f"{interval})"
        )
    return (
        "Compared with the same network trained alone, the distilled student is "
        f"{listed(says)}."
    )


def _interval(row: Mapping[str, Any]) -> str:
    """The interval of a paired difference, or why there is none."""
    if row["low"] is None:
        return f"; {row['reason']}"
    holds = row["low"] <= 0 <= row["high"]
    narrow = f", {row['reason']}" if row["reason"] else ""
    return (
        f"; difference {signed(row['difference'])}, 95 % interval {signed(row['low'])} "
        f"to {signed(row['high'])} over {row['entities']:,} entities{narrow}"
        f"{', which holds 0' if holds else ''}"
    )


def _gap(difference: float) -> str:
    if abs(difference) < MARGIN:
        return "neither better nor worse"
    return f"{abs(difference):.3f} {'above' if difference > 0 else 'below'}"


def _size(results: Results, measure: _Scores) -> str:
    if not {"student", "teacher"} <= measure.f1.keys():
        return ""
    small, large = parameters(results, "student"), parameters(results, "teacher")
    if not small or not large:
        return ""
    return (
        f"The student has {small / large:.0%} of the teacher's parameters "
        f"({small:,} of {large:,}) and a mean F1 of {measure.f1['student']:.3f} "
        f"against {measure.f1['teacher']:.3f} ({measure.threshold})."
    )
