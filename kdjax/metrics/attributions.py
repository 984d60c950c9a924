"""Quality of attributions: HitRate@P% and NDCG against the known channels at fault.

HitRate@P% is that of Su et al., KDD 2019 (OmniAnomaly), NDCG that of Tuli et al., VLDB
2022 (TranAD): both use the ⌊P/100 · culprits⌋ channels of largest contribution. With ties
they are means over all orders, so equal contributions give the value of guessing.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kdjax.errors import DataError
from kdjax.metrics.checks import as_scores, warn_undefined

NO_CULPRIT = "no channel is at fault"


def hit_rate(
    scores: npt.ArrayLike, culprits: Sequence[int], *, percent: int = 100
) -> float:
    """Share of the culprits among the ⌊percent/100 · culprits⌋ channels of top score.

    NaN with a warning where there is no culprit.

    Args:
        scores: contribution of each channel, `[D]`; may be infinite.
        culprits: channels at fault, counted from 0.
        percent: at least 100.

    >>> hit_rate([0.1, 5.0, 0.3, 4.0], [1, 2])
    0.5
    """
    hits = _hits(scores, culprits)
    if hits is None:
        warn_undefined({"the hit rate": NO_CULPRIT})
        return math.nan
    return float(hits[: _top(hits, percent)].sum() / hits.sum())


def ndcg(
    scores: npt.ArrayLike, culprits: Sequence[int], *, percent: int = 100
) -> float:
    """Hits discounted by log2(1 + rank), as a share of the best order's.

    Arguments and the undefined case as in `hit_rate`.

    >>> ndcg([0.1, 5.0, 0.3, 4.0], [1, 2])  # 1 / (1 + 1 / log2(3))
    0.6131471927654584
    """
    hits = _hits(scores, culprits)
    if hits is None:
        warn_undefined({"NDCG": NO_CULPRIT})
        return math.nan
    top = _top(hits, percent)
    discount = 1 / np.log2(np.arange(len(hits)) + 2)
    best = discount[: round(hits.sum())].sum()
    return float(hits[:top] @ discount[:top] / best)


def _hits(scores: npt.ArrayLike, culprits: Sequence[int]) -> np.ndarray | None:
    """Chance `[D]` that the channel of each rank is a culprit; None without culprits."""
    attribution = as_scores(scores)
    at_fault = np.zeros(len(attribution))
    for channel in culprits:
        if not 0 <= channel < len(attribution):
            raise DataError(
                f"`culprits` has channel {channel}, but there are scores for channels 0 "
                f"to {len(attribution) - 1}: count channels from 0."
            )
        at_fault[channel] = 1
    _, level, size = np.unique(-attribution, return_inverse=True, return_counts=True)
    chance: np.ndarray = np.repeat(np.bincount(level, at_fault) / size, size)
    return chance if at_fault.any() else None


def _top(hits: np.ndarray, percent: int) -> int:
    """Number of channels used."""
    if percent < 100:
        raise DataError(
            f"`percent` is {percent}: expected at least 100, since fewer channels than "
            "culprits can't hold them all."
        )
    return int(percent * round(hits.sum()) // 100)
