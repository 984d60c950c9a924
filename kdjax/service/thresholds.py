"""Thresholds that were set while a detector is in service, with their history."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kdjax.detection.stream_rules import Plan
from kdjax.errors import counted
from kdjax.service.bodies import RequestError


class Thresholds:
    """τ that was set for entities, or for all of them.

    Args:
        changes: all changes, the first one first, as `Journal.thresholds` returns them.
        digest: of an entity's detector: a change applies to the detector of its time only.
    """

    def __init__(
        self,
        changes: Iterable[Mapping[str, Any]],
        digest: Callable[[str | None], str],
    ) -> None:
        self.changes, self._digest = list[Mapping[str, Any]](), digest
        self._taus: dict[str | None, float] = {}
        for change in changes:
            self.add(change)

    def of(self, entity: str | None) -> float | None:
        """The τ of an entity, of all others for None; None if none was set."""
        return self._taus.get(entity, self._taus.get(None))

    def add(self, change: Mapping[str, Any]) -> None:
        """Applies a change."""
        self.changes.append(change)
        if change["digest"] == self._digest(change["entity"]):
            if change["entity"] is None:
                self._taus.clear()
            self._taus[change["entity"]] = change["tau"]


def budget_threshold(plan: Plan, per_day: float) -> tuple[float, str]:
    """τ for so many events a day, from a plan's calibration scores, and a note on it.

    Windows that share rows alarm together, so each event is assumed to fill one window:
    the share of windows above τ is `per_day` · L rows of those of a day.
    """
    n, rows = len(plan.calibration), 86_400 / plan.step if plan.step else 0.0
    if not n or not rows:
        raise RequestError(
            409, "the detector has no calibration scores, or no cadence: give `tau`."
        )
    share = per_day * plan.window / rows
    if not share < 1:
        raise RequestError(
            409, f"{per_day:g} events a day are more than the rows of a day allow."
        )
    if share * (plan.disjoint + 1) < 1:
        least = rows / plan.window / (plan.disjoint + 1)
        raise RequestError(
            409,
            f"calibration has {counted(plan.disjoint, 'separate window')}, too few for "
            f"{per_day:g} events a day: give {least:.3g}/day or more, or `tau`.",
        )
    rank = min(math.ceil((n + 1) * (1 - share)), n)
    tau = plan.calibration[rank - 1]
    return (
        tau,
        f"{per_day:g} events a day: {share:.3g} of windows above τ, rank {rank} of {n}",
    )
