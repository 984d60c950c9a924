"""What a run's numbers say, in plain words and not more than they say.

The paper's abstract claims that the student keeps the teacher's performance. This
module puts that claim, and two harder ones, to the rows of results.json: do the
networks beat trivial controls, and does the student beat the same network trained
alone?
"""

from typing import NamedTuple

from kdjax.evaluation.tables import Results, label_free_method, parameters

NETWORKS = ("teacher", "student", "student_alone")
MARGIN = 0.01  # F1; below it two models count as equal
CAUTION = (
    "These are the numbers of one run: without repeats, differences of a few "
    "hundredths are not evidence."
)


class _Scores(NamedTuple):
    """Mean F1 over entities by model, and the words that name the threshold."""

    threshold: str
    f1: dict[str, float]


def verdict(results: Results) -> str:
    """One paragraph: best models, controls, what distillation brought, and a caution."""
    method = label_free_method(results)
    measures = [
        _Scores("thresholds chosen on the test labels", _mean_f1(results, "oracle")),
        _Scores(f"label-free {method} thresholds", _mean_f1(results, method)),
    ]
    measures = [measure for measure in measures if measure.f1]
    if not measures:
        return (
            "No F1 is defined on this test data (no labels, or nothing labelled "
            "anomalous), so this run does not show how well any model detects."
        )
    sentences = [_best(measure) + _controls(measure) for measure in measures]
    sentences += [_distilled(measures), _size(results, measures[0]), CAUTION]
    return " ".join(filter(None, sentences))


def _mean_f1(results: Results, threshold: str) -> dict[str, float]:
    return {
        row["model"]: row["f1"]
        for row in results["rows"]
        if row["threshold"] == threshold
        and (row["scope"], row["level"]) == ("per_entity_mean", "window")
        and row["f1"] is not None
    }


def _best(measure: _Scores) -> str:
    top = max(measure.f1.values())
    names = [name for name, f1 in measure.f1.items() if top - f1 < MARGIN]
    what = f"With {measure.threshold}, "
    if len(names) == 1:
        return f"{what}{names[0]} has the best mean F1 over entities, {top:.3f}"
    return (
        f"{what}{_listed(names)} share the best mean F1 over entities (within {MARGIN} "
        f"of {top:.3f})"
    )


def _controls(measure: _Scores) -> str:
    networks = {name: f1 for name, f1 in measure.f1.items() if name in NETWORKS}
    controls = {name: f1 for name, f1 in measure.f1.items() if name not in NETWORKS}
    if not networks or not controls:
        return "."
    network = max(networks, key=networks.__getitem__)
    control = max(controls, key=controls.__getitem__)
    gap = networks[network] - controls[control]
    pair = f"({network} {networks[network]:.3f}, {control} {controls[control]:.3f})"
    if gap >= MARGIN:
        says = f"the best network is {gap:.3f} above the best trivial control {pair}"
    elif gap > -MARGIN:
        says = f"a trivial control matches the best network {pair}"
    else:
        says = f"a trivial control beats every network by {-gap:.3f} {pair}"
    return f": {says}."


def _distilled(measures: list[_Scores]) -> str:
    both = [m for m in measures if {"student", "student_alone"} <= m.f1.keys()]
    if not both:
        return ""
    says = []
    for measure in both:
        student, alone = measure.f1["student"], measure.f1["student_alone"]
        gap = student - alone
        says.append(
            f"{_gap(gap)} ({student:.3f} against {alone:.3f}, {measure.threshold})"
        )
    return (
        "Compared with the same network trained alone, the distilled student is "
        f"{_listed(says)}."
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
        f"({small:,} of {large:,}) and a mean F1 of {measure.f1['student']:.3f} against "
        f"{measure.f1['teacher']:.3f} ({measure.threshold})."
    )


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
