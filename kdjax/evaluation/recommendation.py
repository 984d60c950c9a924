"""Which detector of a run to take: the smallest that is as good as the best.

The rule, with labels: of the detectors whose label-free F1 of windows lies, on average
over entities, at most 0.01 below that of the best, the one with the smallest exported
file. Random scores are never recommended, and nothing is that doesn't beat them by more
than 0.01. Any other detector may be, controls too.

The bound is on the mean paired difference itself and not on an end of its interval: few
entities make a wide interval, whose upper end would then let everything pass and whose
lower end nothing but the best. What the interval leaves open is said beside the number.
The best is chosen on the entities that judge it, so the others are held to a bar that
is rather too high.

Without labels no detector is known to be good. The rule then is agreement: the smallest
detector whose alarms agree with the teacher's, by a Cohen's kappa of at least 0.9.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdjax.evaluation.intervals import Difference, Measured, compare, measured
from kdjax.evaluation.labels import as_labels, same_length
from kdjax.evaluation.tables import Results, label_free_method

MARGIN = 0.01  # F1
KAPPA = 0.9
RANDOM, TEACHER = "random", "teacher"
ROUNDING = 1e-9  # 0.40 − 0.41 is a little below −0.01

Costs = Mapping[str, Mapping[str, Any]]


class _Quality(NamedTuple):
    """Label-free F1 of windows by model, and the models without one on each entity."""

    method: str
    found: dict[str, Measured]
    left_out: list[str]

    def mean(self, model: str) -> float:
        return float(np.nanmean(self.found[model].values))


def recommend(results: Results) -> dict[str, Any]:
    """The detector to take, drawn from a run's numbers by the rule above.

    Args:
        results: `rows` and `entities` as in results.json; `costs`, an object a model
            from `kdjax.costs.detector_costs`; without labels `agreement`, by model the
            Cohen's kappa of its alarms with the teacher's, None where undefined.

    Returns:
        JSON-able: `model`, None where nothing can be recommended; `rule`, a sentence;
        `text`, two to four; `equivalent`, the models among which size decided, in the
        order of the rows; `best`, what they were compared with.
    """
    method = label_free_method(results)
    quality = _quality(results, method)
    if quality.found or quality.left_out:
        return _by_f1(quality, results.get("costs", {}))
    return _by_agreement(results, method)


def agreement(first_alarms: npt.ArrayLike, second_alarms: npt.ArrayLike) -> float:
    """Cohen's kappa of two detectors' alarms on the same M windows.

    1 where they are the same, 0 where they agree as often as by chance. NaN, without a
    warning, where both raise no alarm at all, or both in all windows: chance alone then
    agrees everywhere.

    Args:
        first_alarms: `[M]`, 1 in alarm, else 0.
        second_alarms: `[M]`.

    Raises:
        DataError: other values, no windows, or different numbers of them.

    >>> round(agreement([0, 0, 0, 1, 1], [0, 0, 1, 1, 1]), 4)
    0.6154
    >>> agreement([0, 0], [0, 0])
    nan
    """
    from sklearn.metrics import cohen_kappa_score  # here: it takes a second to import

    first = as_labels(first_alarms, name="first_alarms")
    second = as_labels(second_alarms, name="second_alarms")
    same_length(first, second, "second_alarms")
    if len({*first.tolist(), *second.tolist()}) == 1:
        return math.nan
    return float(cohen_kappa_score(first, second))


# With labels.


def _quality(results: Results, method: str) -> _Quality:
    """F1 of the models that have one on each entity where any has one.

    A model that was measured on the easy entities only would not be comparable.
    """
    names = dict.fromkeys(row["model"] for row in results["entities"])
    key = {"threshold": method, "level": "window", "metric": "f1"}
    rows = results["entities"]
    every = {name: _defined(measured(rows, name, **key)) for name in names}
    wanted = {entity for one in every.values() for entity in one.entities}
    found = {n: one for n, one in every.items() if {*one.entities} == wanted}
    if not wanted:
        return _Quality(method, {}, [])
    return _Quality(method, found, [name for name in every if name not in found])


def _defined(found: Measured) -> Measured:
    """Without the entities that have no value under some seed."""
    kept = ~np.isnan(found.values).any(axis=0)
    names = [name for name, keep in zip(found.entities, kept, strict=True) if keep]
    return found._replace(entities=tuple(names), values=found.values[:, kept])


def _by_f1(quality: _Quality, costs: Costs) -> dict[str, Any]:
    rule = (
        "The smallest detector (bytes of its ONNX file, or numbers it needs where "
        f"there is none) whose label-free {quality.method} F1 of windows is, on "
        f"average over entities, at most {MARGIN} below the best; never random scores, "
        f"and nothing that does not beat them by more than {MARGIN}."
    )
    candidates = [name for name in quality.found if name != RANDOM]
    if not candidates:
        text = "No detector is recommended: none has an F1 on each entity."
        return _answer(None, rule, text, [], None)
    best = max(candidates, key=quality.mean)
    if why := _worthless(quality, best):
        return _answer(None, rule, why, [], best)
    gaps = {n: compare(quality.found[n], quality.found[best]) for n in candidates}
    equivalent = [n for n in candidates if gaps[n].difference >= -MARGIN - ROUNDING]
    sizes = _sizes(equivalent, costs)
    model = min(sizes, key=lambda n: (sizes[n], -quality.mean(n)), default=best)
    text = " ".join(
        [
            _recommended(model, costs),
            _against(quality, model, best, gaps[model], costs),
            _among(equivalent, sizes, f"within {MARGIN} of the best"),
            *_evidence(gaps[model], model == best),
            *_left_out(quality),
        ]
    )
    return _answer(model, rule, text, equivalent, best)


def _worthless(quality: _Quality, best: str) -> str:
    """Why not even the best detector is recommended, if so."""
    top, method = quality.mean(best), quality.method
    if RANDOM in quality.found and (
        compare(quality.found[best], quality.found[RANDOM]).difference
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


def _against(
    quality: _Quality, model: str, best: str, gap: Difference, costs: Costs
) -> str:
    count = gap.entities
    where = "one entity" if count == 1 else f"mean of {count:,} entities"
    own = f"{quality.mean(model):.3f} ({where})"
    f1 = f"Its label-free {quality.method} F1 of windows is {own}"
    if model == best:
        return f"{f1}, the best."
    price = _price(best, costs)
    also = f" ({price})" if price else ""
    return f"{f1} against {quality.mean(best):.3f} of {best}, the best{also}."


def _among(equivalent: Sequence[str], sizes: Mapping[str, float], how: str) -> str:
    if len(equivalent) == 1:
        return f"No other detector is {how}."
    if not sizes:
        return f"{listed(equivalent)} are {how}; their sizes were not measured."
    unknown = [name for name in equivalent if name not in sizes]
    but = f"; the size of {listed(unknown)} is not known" if unknown else ""
    return f"It is the smallest of {listed(equivalent)}, which are {how}{but}."


def _evidence(gap: Difference, is_best: bool) -> list[str]:
    """What the entities say of the difference between the recommended and the best."""
    if gap.entities == 1:
        return ["One entity says nothing about others."]
    if is_best:
        return []
    difference = f"The difference is {signed(gap.difference)}"
    if math.isnan(gap.low):
        return [f"{difference}; {gap.reason}."]
    says = "does not rule out" if gap.low < -MARGIN - ROUNDING else "rules out"
    narrow = f"; {gap.reason}" if gap.reason else ""
    interval = f"95 % interval {signed(gap.low)} to {signed(gap.high)}{narrow}"
    return [f"{difference} ({interval}), which {says} a loss of more than {MARGIN}."]


def _left_out(quality: _Quality) -> list[str]:
    if not quality.left_out:
        return []
    return [f"Left out, without an F1 on each entity: {listed(quality.left_out)}."]


# Without labels.


def _by_agreement(results: Results, method: str) -> dict[str, Any]:
    rule = (
        "Without an F1: the smallest detector (bytes of its ONNX file, or numbers it "
        f"needs where there is none) whose label-free {method} alarms agree with the "
        f"teacher's by a Cohen's kappa of at least {KAPPA}; never random scores."
    )
    kappas, costs = dict(results.get("agreement") or {}), results.get("costs", {})
    if not kappas:
        text = (
            "No detector is recommended: there is neither an F1, for want of labels, "
            "nor a comparison of alarms with the teacher's."
        )
        return _answer(None, rule, text, [], None)
    # The teacher agrees with itself, also where it never raises an alarm.
    kappas = {TEACHER: 1.0} | {n: k for n, k in kappas.items() if n != TEACHER}
    known = {
        name: k for name, k in kappas.items() if k is not None and not math.isnan(k)
    }
    equivalent = [n for n, k in known.items() if n != RANDOM and k >= KAPPA - ROUNDING]
    sizes = _sizes(equivalent, costs)
    model = min(sizes, key=lambda n: (sizes[n], -known[n]), default=TEACHER)
    texts = [_recommended(model, costs), _agrees(model, known[model], method)]
    texts.append(_among(equivalent, sizes, f"at a kappa of {KAPPA} or more"))
    if vague := [name for name in kappas if name not in known and name != RANDOM]:
        texts.append(
            f"Kappa is undefined for {listed(vague)}: as the teacher, no alarm at all, "
            "or one in each window."
        )
    return _answer(model, rule, " ".join(texts), equivalent, TEACHER)


def _agrees(model: str, kappa: float, method: str) -> str:
    unknown = "No F1 is defined, so nothing says which detector is right"
    if model == TEACHER:
        return f"{unknown}; the others are compared with it."
    return (
        f"{unknown}; its label-free {method} alarms agree with the teacher's (Cohen's "
        f"kappa {kappa:.3f})."
    )


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
    return {
        "model": model,
        "rule": rule,
        "text": text,
        "equivalent": equivalent,
        "best": best,
    }
