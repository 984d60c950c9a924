"""Reads rows for a detector in the way of its training file, which its card describes.

Nothing here needs JAX, so that a faulty file is reported before JAX starts.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdjax.data.grid import parse_step
from kdjax.data.readers import load_files, series_of
from kdjax.data.schema import Reading
from kdjax.data.series import Series
from kdjax.data.tables import Table
from kdjax.data.times import NAMES
from kdjax.errors import ArtifactError
from kdjax.io.files import verify_manifest

if TYPE_CHECKING:
    from kdjax.detection.detector import Detector

# Options of `Reading` that a detector keeps, besides rules of whole files.
OF_ROWS = (
    "time_column", "entity_column", "ignore", "missing_values", "layout", "tag_column",
    "value_column", "step", "duplicates",
)  # fmt: skip
CONTRIBUTION = "contribution:"  # before a channel's name in columns of score tables
# Rules of a detector's training file, if its card has them.
_RULES = ("missing", "order", "duplicates")


class Described(NamedTuple):
    """The fields of a saved `Detector` that describe how rows are read."""

    card: Mapping[str, Any]
    channels: tuple[str, ...]
    window: int


def read_description(folder: Path) -> Described | None:
    """These fields of a complete saved detector; None for one that can't be loaded."""
    try:
        verify_manifest(folder)
        found = json.loads((folder / "detector.json").read_text("utf-8"))
        card = json.loads((folder / "card.json").read_text("utf-8"))
        return Described(card, tuple(found["channels"]), int(found["window"]))
    except (ArtifactError, OSError, LookupError, TypeError, ValueError, RecursionError):
        return None


def read_like(
    detector: "Detector | Described",
    path: str | os.PathLike[str] | Table,
    *,
    dtype: Any = None,
    missing: str = "",
    order: str = "",
    duplicates: str = "",
    exclude: str | os.PathLike[str] = "",
    entity: str = "",
    **given: Any,
) -> tuple[Series, ...]:
    """Reads a file, or a table, with the options of the training file in the card.

    Options of `read_table` override the card where they are not empty. Columns of the card
    are optional. `entity` names rows without an entity column, by default as the file.
    `dtype` is that of the rows. `exclude` is for files only.
    """
    own = options_like(
        detector, missing=missing, order=order, duplicates=duplicates, **given
    )
    if isinstance(path, Table):
        may_lack = own.pop("may_lack")
        return series_of(path, Reading(**own, dtype=dtype), entity, may_lack=may_lack)
    return load_files(path, exclude=exclude, entity=entity, dtype=dtype, **own).train


def options_like(
    detector: "Detector | Described",
    *,
    missing: str = "",
    order: str = "",
    duplicates: str = "",
    **given: Any,
) -> dict[str, Any]:
    """The options of `load_files` that `read_like` uses, except its own."""
    data: dict[str, Any] = detector.card.get("settings", {}).get("data", {})
    rules = {name: data[name] for name in _RULES if name in data}
    own_rules = {"missing": missing, "order": order, "duplicates": duplicates}
    rules |= {name: value for name, value in own_rules.items() if value}
    known, label = reading_of(detector), given.get("label_column") or ""
    own = read_by(known, {**given, "label_column": ""})
    limit = fill_limit(detector, missing=missing, step=str(own.step)) or None
    ignore = tuple(name for name in own.ignore if name != label)
    rules |= {"channels": tuple(detector.channels)}
    own = own._replace(label_column=label, ignore=ignore, fill_limit=limit, **rules)
    may_lack = {known.time_column, known.entity_column, *ignore}
    may_lack -= {given.get("time_column"), given.get("entity_column")}
    options = own._asdict()
    del options["dtype"]
    return options | {"may_lack": may_lack}


def reading_of(detector: "Detector | Described") -> Reading:
    """How the rows of training were read, by the card."""
    card = detector.card
    data, known = card.get("settings", {}).get("data", {}), card.get("data", {})
    given = {name: data[name] for name in OF_ROWS if name in data}
    clock, step = known.get("time_column", ""), given.get("step", "")
    if clock and clock.lower() not in NAMES:  # NAMES are found without an option
        given["time_column"] = clock
    if known.get("dated") and step and not parse_step(step)[1]:
        # Numbers as times are then refused.
        given["step"] = np.format_float_positional(parse_step(step)[0], trim="-") + "s"
    if not step:
        given.pop("duplicates", None)  # for readings only
    return read_by(Reading(), {**given, "label_column": data.get("label_column")})


def read_by(reading: Reading, given: Mapping[str, Any]) -> Reading:
    """`reading` with the options of `read_table` that are given and not empty.

    Ignored columns and a label column are added to those of before; an ignored column
    loses its role of before.
    """
    if unknown := given.keys() - {*OF_ROWS, "label_column"}:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    changes = {name: value for name, value in given.items() if value}
    changes.pop("label_column", None)
    for role in ("time_column", "entity_column"):
        if getattr(reading, role) in given.get("ignore", ()):
            changes.setdefault(role, "")
    ignore = (*reading.ignore, *given.get("ignore", ()), given.get("label_column"))
    changes["ignore"] = tuple(dict.fromkeys(filter(None, ignore)))
    if "missing_values" in changes:
        changes["missing_values"] = tuple(changes["missing_values"])
    return reading._replace(**changes)


def fill_limit(
    detector: "Detector | Described", *, missing: str = "", step: str = ""
) -> int:
    """Most rows that repeat a value for missing cells, by the card; 0 for none.

    `missing` and `step` override the card's rule and grid.
    """
    data = detector.card.get("settings", {}).get("data", {})
    if not (step or data.get("step")) and (missing or data.get("missing")) != "ffill":
        return 0
    # Version 0.1.0 had no limit.
    return int(data.get("fill_limit") or detector.window)
