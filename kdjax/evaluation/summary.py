"""A run's recommendation and its summary in words.

Recommendation, with labels: of the detectors whose label-free F1 of windows is, on
average over entities, at most 0.01 below that of the best, the one with the smallest
exported file. Excluded are random scores, detectors that do not beat them by more than
0.01, and detectors that alarm on most clean windows, or give all windows one score
(`unfit_models`). Baselines may be recommended.

The bound is on the mean paired difference, not on an end of its interval: the interval
of few entities is wide, so that its upper end would admit all detectors and its lower end
only the best. The interval is printed beside the number.

Without labels: `classifier`, the kind that detects most on public data
(docs/results/tsbad.md). In a run without it the smallest detector whose alarms agree with
the teacher's by a Cohen's kappa of at least 0.9.

The summary checks the paper's claim that the student keeps the teacher's performance,
and two more: the networks beat trivial baselines, and the student beats the same
network trained without a teacher.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdjax.detection.false_alarms import events_text
from kdjax.evaluation import intervals
from kdjax.evaluation.intervals import Interval, Measured
from kdjax.evaluation.rows import CLASSIFIER, NETWORKS, ORACLE, RANDOM, TEACHER
from kdjax.evaluation.tables import Results, label_free_method, parameters
from kdjax.metrics.checks import with_alarms

MARGIN = 0.01  # F1
KAPPA = 0.9
MOST = 0.5  # of the clean windows
ROUNDING = 1e-9  # 0.40 − 0.41 is a little below −0.01

Costs = Mapping[str, Mapping[str, Any]]


class _Quality(NamedTuple):
    """Label-free F1 of windows by model, and the models without one on each entity."""

    method: str
    found: dict[str, Measured]
    left_out: list[str]

    def mean(self, model: str) -> float:
        return float(np.mean([*self.found[model].values()]))


def recommend(results: Results) -> dict[str, Any]:
    """The recommended detector by the rule above, JSON-able.

    `results` has `rows` and `entities`; `costs` from `detector_costs`; `unfit` from
    `unfit_models`; without labels
    `agreement`, by model the kappa of its alarms with the teacher's, None where
    undefined. `model` is None where nothing is recommended; `rule` is a sentence, `text`
    two to four; `equivalent` are the models among which size decided, `best` the one they
    were compared with.
    """
    method, rows = label_free_method(results), results["entities"]
    every = {}
    for name in dict.fromkeys(row["model"] for row in rows):
        own = intervals.measured(
            rows, name, threshold=method, level="window", metric="f1"
        )
        every[name] = {e: f1 for e, f1 in own.items() if not math.isnan(f1)}
    # Means over different entities would not be comparable.
    wanted = {entity for one in every.values() for entity in one}
    if not wanted:
        return _by_agreement(results, method)
    found = {n: m for n, m in every.items() if m.keys() == wanted}
    left_out = [name for name in every if name not in found]
    quality = _Quality(method, found, left_out)
    return _by_f1(quality, results.get("costs", {}), results.get("unfit", {}))


def unfit_models(
    rates: Sequence[Mapping[str, Any]],
    window_scores: Mapping[str, Sequence[np.ndarray]],
) -> dict[str, str]:
    """The models that are never recommended, each with the reason.

    `rates` are those of `false_alarm_rates`: of clean test windows where they are known,
    else of calibration windows in turn left out; `window_scores` `[M]` an entity by model.

    >>> unfit_models([], {"pca": [np.ones(3)], "student": [np.arange(3.0)]})
    {'pca': 'gives all windows the same score'}
    """
    found = {}
    for name, scores in window_scores.items():
        known = [own[~np.isnan(own)] for own in scores]
        if any(map(len, known)) and all(len(set(own.tolist())) < 2 for own in known):
            found[name] = "gives all windows the same score"
        own_rates = [r for r in rates if r["model"] == name and r["used"]]
        clean = [(r["clean_test"] or r["left_out"])["rate"] for r in own_rates]
        clean = [rate for rate in clean if rate is not None]
        if clean and np.mean(clean) > MOST:
            found[name] = f"alarms on {np.mean(clean):.0%} of clean windows"
    return found


def agreement(
    first_alarms: npt.ArrayLike, second_alarms: npt.ArrayLike
) -> float | None:
    """Cohen's kappa of two detectors' alarms `[M]` (0 or 1) on the same windows.

    None where both raise no alarm at all, or both in all windows.

    >>> round(agreement([0, 0, 0, 1, 1], [0, 0, 1, 1, 1]), 4)
    0.6154
    """
    from sklearn.metrics import cohen_kappa_score  # here: it takes a second to import

    first, second = with_alarms(first_alarms, second_alarms)
    if len({*first.tolist(), *second.tolist()}) == 1:
        return None
    return float(cohen_kappa_score(first, second))


# With labels.


def _by_f1(quality: _Quality, costs: Costs, unfit: Mapping[str, str]) -> dict[str, Any]:
    rule = (
        "The smallest detector (bytes of its ONNX file, or numbers it needs where "
        f"there is none) whose label-free {quality.method} F1 of windows is, on "
        f"average over entities, at most {MARGIN} below the best; never random scores, "
        f"and nothing that does not beat them by more than {MARGIN}, alarms on most clean "
        "windows or gives all windows one score."
    )
    named = [name for name in quality.found if name != RANDOM]
    candidates = [name for name in named if name not in unfit]
    if named and not candidates:
        return _answer(None, rule, _none_fit(named, unfit), [], None)
    if not candidates:
        text = "No detector is recommended: none has an F1 on each entity."
        return _answer(None, rule, text, [], None)
    best = max(candidates, key=quality.mean)
    if why := _worthless(quality, best):
        return _answer(None, rule, why, [], best)
    gaps = {
        n: intervals.compare(quality.found[n], quality.found[best]) for n in candidates
    }
    equivalent = [n for n in candidates if gaps[n].mean >= -MARGIN - ROUNDING]
    sizes = _sizes(equivalent, costs)
    model = min(sizes, key=lambda n: (sizes[n], -quality.mean(n)), default=best)
    count = gaps[model].entities
    where = "one entity" if count == 1 else f"mean of {count:,} entities"
    f1 = (
        f"Its label-free {quality.method} F1 of windows is {quality.mean(model):.3f} "
        f"({where})"
    )
    if model == best:
        f1 += ", the best."
    else:
        price = _price(best, costs)
        also = f" ({price})" if price else ""
        f1 += f" against {quality.mean(best):.3f} of {best}, the best{also}."
    texts = [
        _recommended(model, costs),
        f1,
        _among(equivalent, sizes, f"within {MARGIN} of the best"),
        *_evidence(gaps[model], model == best),
    ]
    if quality.left_out:
        names = listed(quality.left_out)
        texts.append(f"Left out, without an F1 on each entity: {names}.")
    if reasons := [f"{name} {unfit[name]}" for name in named if name in unfit]:
        texts.append(f"Not fit: {listed(reasons)}.")
    return _answer(model, rule, " ".join(texts), equivalent, best)


def _none_fit(names: Sequence[str], unfit: Mapping[str, str]) -> str:
    reasons = listed([f"{name} {unfit[name]}" for name in names])
    return f"No detector is recommended: none of these is fit: {reasons}."


def _worthless(quality: _Quality, best: str) -> str:
    """The sentence if not even the best detector is recommended; else empty."""
    top, method = quality.mean(best), quality.method
    if RANDOM in quality.found and (
        intervals.compare(quality.found[best], quality.found[RANDOM]).mean
        <= MARGIN + ROUNDING
    ):
        return (
            f"No detector is recommended: the best label-free {method} F1 of windows, "
            f"{top:.3f} ({best}), is not more than {MARGIN} above that of random "
            f"scores, {quality.mean(RANDOM):.3f}."
        )
    if top == 0:
        return (
            f"No detector is recommended: under its label-free {method} threshold none "
            "found a window that is labelled anomalous."
        )
    return ""


def _among(equivalent: Sequence[str], sizes: Mapping[str, float], how: str) -> str:
    if len(equivalent) == 1:
        return f"No other detector is {how}."
    if not sizes:
        return f"{listed(equivalent)} are {how}; their sizes were not measured."
    unknown = [name for name in equivalent if name not in sizes]
    but = f"; the size of {listed(unknown)} is not known" if unknown else ""
    return f"It is the smallest of {listed(equivalent)}, which are {how}{but}."


def _evidence(gap: Interval, is_best: bool) -> list[str]:
    """Sentences on the uncertainty of the difference between the recommended and the best."""
    if gap.entities == 1:
        return ["One entity is no evidence on others."]
    if is_best:
        return []
    difference = f"The difference is {signed(gap.mean)}"
    if math.isnan(gap.low):
        return [f"{difference}; {gap.reason}."]
    verb = "does not rule out" if gap.low < -MARGIN - ROUNDING else "rules out"
    narrow = f"; {gap.reason}" if gap.reason else ""
    interval = f"95 % interval {signed(gap.low)} to {signed(gap.high)}{narrow}"
    return [f"{difference} ({interval}), which {verb} a loss of more than {MARGIN}."]


# Without labels.


def _by_agreement(results: Results, method: str) -> dict[str, Any]:
    rule = (
        f"Without an F1: {CLASSIFIER}, which detects most on public data; without it the "
        "smallest detector (bytes of its ONNX file, or numbers it needs where there is "
        f"none) whose label-free {method} alarms agree with the "
        f"teacher's by a Cohen's kappa of at least {KAPPA}; never random scores."
    )
    kappas, costs = dict(results.get("agreement") or {}), results.get("costs", {})
    if not kappas:
        text = (
            "No detector is recommended: there is neither an F1, for want of labels, "
            "nor a comparison of alarms with the teacher's."
        )
        return _answer(None, rule, text, [], None)
    # Also where the teacher never raises an alarm.
    kappas = {TEACHER: 1.0} | {n: k for n, k in kappas.items() if n != TEACHER}
    unfit = results.get("unfit", {})
    if CLASSIFIER in kappas and CLASSIFIER not in unfit:
        text = (
            f"{_recommended(CLASSIFIER, costs)} Without labels this run can't compare "
            "detectors; on public data this kind detects most."
        )
        return _answer(CLASSIFIER, rule, text, [CLASSIFIER], CLASSIFIER)
    if TEACHER in unfit:
        return _answer(None, rule, _none_fit([TEACHER], unfit), [], None)
    kappas = {name: kappa for name, kappa in kappas.items() if name not in unfit}
    known = {name: kappa for name, kappa in kappas.items() if kappa is not None}
    equivalent = [n for n, k in known.items() if n != RANDOM and k >= KAPPA - ROUNDING]
    sizes = _sizes(equivalent, costs)
    model = min(sizes, key=lambda n: (sizes[n], -known[n]), default=TEACHER)
    agrees = "the others are compared with it."
    if model != TEACHER:
        agrees = (
            f"its label-free {method} alarms agree with the teacher's (Cohen's kappa "
            f"{known[model]:.3f})."
        )
    texts = [
        _recommended(model, costs),
        f"No F1 is defined, so it is unknown which detector is right; {agrees}",
        _among(equivalent, sizes, f"at a kappa of {KAPPA} or more"),
    ]
    if vague := [name for name in kappas if name not in known and name != RANDOM]:
        texts.append(
            f"Kappa is undefined for {listed(vague)}: as the teacher, no alarm at all, "
            "or one in each window."
        )
    return _answer(model, rule, " ".join(texts), equivalent, TEACHER)


# Words and sizes.


def _sizes(models: Iterable[str], costs: Costs) -> dict[str, float]:
    """Sizes of the models that have one, all in bytes or all in numbers."""
    known = [name for name in models if costs.get(name, {}).get("numbers") is not None]
    has_file = all(costs[name].get("bytes") is not None for name in known)
    return {n: costs[n]["bytes" if has_file else "numbers"] for n in known}


def _recommended(model: str, costs: Costs) -> str:
    price = _price(model, costs)
    return f"Recommended: {model}{f', {price}' if price else ''}."


def _price(model: str, costs: Costs) -> str:
    """Such as `1,482 numbers, 9,431 bytes of ONNX and 0.021 ms a window`."""
    cost = costs.get(model, {})
    formats = {
        "numbers": "{:,} numbers",
        "bytes": "{:,} bytes of ONNX",
        "milliseconds": "{:.3f} ms a window",
    }
    return listed(
        [words.format(cost[key]) for key, words in formats.items() if cost.get(key)]
    )


def listed(names: Sequence[str]) -> str:
    """`a, b and c`.

    >>> listed(["a", "b", "c"]), listed(["a"]), listed([])
    ('a, b and c', 'a', '')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def signed(number: float) -> str:
    """A difference to three decimals with a true minus.

    >>> signed(-0.0125), signed(0.5), signed(-0.0001)
    ('−0.013', '0.500', '0.000')
    """
    text = f"{number:.3f}"
    return "0.000" if text == "-0.000" else text.replace("-", "−")


def _answer(
    model: str | None, rule: str, text: str, equivalent: list[str], best: str | None
) -> dict[str, Any]:
    words = {"model": model, "rule": rule, "text": text}
    return {**words, "equivalent": equivalent, "best": best}


def headline(results: Results) -> str:
    """Which detector is recommended and what it costs, or why none is, in a sentence."""
    recommendation = results.get("recommendation") or {}
    if recommendation.get("model") is None:
        return str(recommendation.get("text", ""))
    return _recommended(recommendation["model"], results.get("costs", {}))


def expected_words(results: Results, model: str) -> str:
    """How many events of a model an entity has in normal behaviour, a sentence."""
    used = [r for r in results["rates"] if r["model"] == model and r["used"]]
    found = [rate["expected_events"] for rate in used if rate.get("expected_events")]
    if not found:
        return "There are too few calibration windows to estimate the number of events."
    number, low, high = (
        events_text(float(np.mean([one[name] for one in found])))
        for name in ("number", "low", "high")
    )
    each = " of each entity, in the mean" if len(found) > 1 else ""
    mode = found[0].get("mode")  # not in old results
    counted_as = f", as kdjax {mode} counts them" if mode else ""
    return (
        f"Expect about {number} events {found[0]['unit']} ({low}–{high}) of {model} in "
        f"normal behaviour{each}{counted_as}; from calibration windows left out in turn."
    )


CAUTION = (
    "These are the numbers of one run: without repeats, differences of a few "
    "hundredths are not evidence."
)
ENTITIES_ONLY = "The intervals cover other entities, not another training."


def summarise(results: Results) -> str:
    """One paragraph: recommendation, best models, baselines, effect of distillation."""
    method = label_free_method(results)
    recommendation = results.get("recommendation") or {}
    sentences = [recommendation.get("text", "")]
    measures = []  # rule, its name in words, and F1 by model
    for rule, words in (
        (ORACLE, "thresholds chosen on the test labels"),
        (method, f"label-free {method} thresholds"),
    ):
        f1 = {
            row["model"]: row["f1"]
            for row in results["rows"]
            if (row["threshold"], row["scope"]) == (rule, "per_entity_mean")
            and row["level"] == "window"
            and row["f1"] is not None
        }
        if f1:
            measures.append((rule, words, f1))
            # The recommendation has the best model under the label-free threshold.
            is_known = rule == method and recommendation.get("best") is not None
            found = [*([] if is_known else [_best(f1)]), *_baselines(f1)]
            sentences.append(f"With {words}, {': '.join(found)}." if found else "")
    if not measures:
        sentences.append(
            "No F1 is defined on this test data (no labels, or nothing labelled "
            "anomalous), so this run does not show how well any model detects."
        )
        return " ".join(filter(None, sentences))
    # Student minus student_alone in F1 of windows, by threshold.
    paired = {
        row["threshold"]: row
        for row in results.get("paired") or ()
        if (row["model"], row["against"]) == ("student", "student_alone")
        and (row["level"], row["metric"]) == ("window", "f1")
        and row["difference"] is not None
    }
    effects = [
        _effect(f1, words, paired.get(rule))
        for rule, words, f1 in measures
        if {"student", "student_alone"} <= f1.keys()
    ]
    if effects:
        sentences.append(
            "Compared with the same network trained alone, the distilled student is "
            f"{listed(effects)}."
        )
    sentences += [_size(results, *measures[0][1:]), CAUTION]
    if any(row["low"] is not None for row in paired.values()):
        sentences.append(ENTITIES_ONLY)
    return " ".join(filter(None, sentences))


def _best(means: Mapping[str, float]) -> str:
    top = max(means.values())
    names = [name for name, f1 in means.items() if top - f1 < MARGIN]
    if len(names) == 1:
        return f"{names[0]} has the best mean F1 over entities, {top:.3f}"
    return (
        f"{listed(names)} share the best mean F1 over entities (within {MARGIN} of "
        f"{top:.3f})"
    )


def _baselines(means: Mapping[str, float]) -> list[str]:
    """How the best network and the best baseline compare, if there are both."""
    networks = [name for name in means if name in NETWORKS]
    baselines = [name for name in means if intervals.is_baseline(name)]
    if not networks or not baselines:
        return []
    network, baseline = (max(n, key=means.__getitem__) for n in (networks, baselines))
    gap = means[network] - means[baseline]
    pair = f"({network} {means[network]:.3f}, {baseline} {means[baseline]:.3f})"
    if gap >= MARGIN:
        return [f"the best network is {gap:.3f} above the best trivial baseline {pair}"]
    if gap > -MARGIN:
        return [f"a trivial baseline matches the best network {pair}"]
    return [f"a trivial baseline beats every network by {-gap:.3f} {pair}"]


def _effect(
    means: Mapping[str, float], words: str, row: Mapping[str, Any] | None
) -> str:
    """The student against student_alone; `row` is their paired difference."""
    student, alone = means["student"], means["student_alone"]
    gap, interval = student - alone, ""
    if row is not None:
        gap, interval = row["difference"], f"; {row['reason']}"
        if row["low"] is not None:
            narrow = f", {row['reason']}" if row["reason"] else ""
            holds = ", which holds 0" if row["low"] <= 0 <= row["high"] else ""
            interval = (
                f"; difference {signed(gap)}, 95 % interval {signed(row['low'])} to "
                f"{signed(row['high'])} over {row['entities']:,} entities{narrow}{holds}"
            )
    effect = f"{abs(gap):.3f} {'above' if gap > 0 else 'below'}"
    if abs(gap) < MARGIN:
        effect = "neither better nor worse"
    return f"{effect} ({student:.3f} against {alone:.3f}, {words}{interval})"


def _size(results: Results, words: str, means: Mapping[str, float]) -> str:
    if not {"student", "teacher"} <= means.keys():
        return ""
    small, large = parameters(results, "student"), parameters(results, "teacher")
    if not small or not large:
        return ""
    return (
        f"The student has {small / large:.0%} of the teacher's parameters "
        f"({small:,} of {large:,}) and a mean F1 of {means['student']:.3f} "
        f"against {means['teacher']:.3f} ({words})."
    )
