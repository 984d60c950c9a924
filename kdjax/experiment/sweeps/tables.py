"""What the members of a sweep found: the tidy table, its file and its summary.

The table has a row for each member and entity: `member`, `entity`, `status`, `reason`,
the swept fields under their dotted names, the measures. Means are taken over a member's
entities first and over members then, so that a member counts once however many of its
entities have a number.
"""

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from kdjax.errors import ArtifactError, DataError
from kdjax.evaluation.tables import MISSING
from kdjax.io.files import write_text

if TYPE_CHECKING:  # only the terminal's table needs rich
    from rich.table import Table

LEADING = ("member", "entity", "status", "reason")
DONE, FAILED = "done", "failed"
LOSS = "validation_loss"
SEED = "seed"  # repeats a member; never tells groups apart


class SummaryCells(NamedTuple):
    """The summary as text: column names, and a line a group."""

    heads: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def members_table(
    rows: Iterable[Mapping[str, Any]],
    *,
    fields: Sequence[str],
    measures: Sequence[str],
) -> pd.DataFrame:
    """The tidy table, sorted by member; a member's entities in the order given.

    Args:
        rows: of each member and entity: `member`, `entity`, `status` (`done` or
            `failed`), `reason` (where failed), a number or text for each field, and the
            measures. A measure that is absent or None becomes NaN.
        fields: the swept fields.
        measures: what was measured.

    Raises:
        DataError: a row has other keys, lacks one or has a wrong value; a member has
            two rows of one entity, or different fields in its rows.
    """
    names = (*LEADING, *fields, *measures)
    if len(set(names)) < len(names):
        raise DataError(
            f"members: the columns {', '.join(names)} are not all different; "
            "name each field and each measure once."
        )
    lines = [_line(row, fields=fields, measures=measures) for row in rows]
    lines.sort(key=lambda line: line["member"])
    _check_members(lines, fields)
    table = _frame({name: [line[name] for line in lines] for name in names})
    return table.astype(dict.fromkeys(measures, "float64"))


def measure_names(
    rows: Iterable[Mapping[str, Any]], fields: Sequence[str]
) -> tuple[str, ...]:
    """What rows for `members_table` have measured, in order of first appearance."""
    known = {*LEADING, *fields}
    return tuple(dict.fromkeys(k for row in rows for k in row if k not in known))


def write_members(path: str | os.PathLike[str], frame: pd.DataFrame) -> None:
    """Writes the tidy table as CSV, whole or not at all.

    Texts stand in quotes and numbers don't: so `read_members` tells "007" from 7. An
    undefined measure is `nan`.
    """
    text = io.StringIO()
    # Not `to_csv`, which would put the NaNs in quotes as well.
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(frame.columns)
    writer.writerows(frame.astype(object).itertuples(index=False, name=None))
    write_text(path, text.getvalue())


def read_members(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The table that `write_members` wrote: every text, number and NaN as it was.

    Raises:
        ArtifactError: there is no such file, or it is not as `write_members` left it.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
        kinds = csv.reader(io.StringIO(text, ""), quoting=csv.QUOTE_NONNUMERIC)
        cells = csv.reader(io.StringIO(text, ""))
        names, *lines = [
            [_parsed(*pair) for pair in zip(*both, strict=True)]
            for both in zip(kinds, cells, strict=True)
        ]
        columns = list(zip(*lines, strict=True)) if lines else [()] * len(names)
        table = _frame(dict(zip(names, columns, strict=True)))
    except (OSError, ValueError, csv.Error) as error:
        raise ArtifactError(
            f"{path} can't be read as a table of members ({error}). "
            "Restore it from a copy or run the sweep again."
        ) from error
    if tuple(names[: len(LEADING)]) != LEADING:
        raise ArtifactError(
            f"{path}: the columns start with {', '.join(map(str, names[:4]))}, not "
            f"with {', '.join(LEADING)}. Give the members.csv that a sweep wrote."
        )
    return table


def member_means(
    members: pd.DataFrame, *, fields: Sequence[str], measures: Sequence[str]
) -> pd.DataFrame:
    """One row a member: `member`, `status`, fields, each measure's mean over entities.

    The mean is that of the entities that have a number, NaN where none has. A member
    that failed, be it on one entity only, has no means.
    """
    first = ~members["member"].duplicated()
    means = members.loc[first, ["member", "status", *fields]].reset_index(drop=True)
    failed = members.loc[members["status"] != DONE, "member"]
    means["status"] = np.where(means["member"].isin(failed), FAILED, DONE)
    by_member = members.groupby("member", sort=False)
    for measure in measures:
        found = means["member"].map(by_member[measure].mean())
        means[measure] = found.where(means["status"] == DONE)
    return means


def summary(
    members: pd.DataFrame, *, fields: Sequence[str], measures: Sequence[str]
) -> pd.DataFrame:
    """Means and spreads over the members that differ by their seed alone.

    Columns: the fields without `seed`, `members` (those done), `failed`, and for each
    measure `M_mean` and `M_sd` (ddof 1; NaN for a single member) over the done members
    that have one. Groups are in the order in which they first appear; where nothing but
    the seed was swept, one group holds all.
    """
    means = member_means(members, fields=fields, measures=measures)
    keys = group_fields(fields)
    if keys:
        number = means.groupby(keys, sort=False, dropna=False).ngroup()
    else:
        number = pd.Series(0, index=means.index)
    done = means["status"] == DONE
    table = means.loc[~number.duplicated(), keys].reset_index(drop=True)
    table["members"] = done.groupby(number).sum()
    table["failed"] = (~done).groupby(number).sum()
    for measure in measures:
        by_group = means[measure].groupby(number)
        table[f"{measure}_mean"] = by_group.mean()
        table[f"{measure}_sd"] = by_group.std(ddof=1)
    return table


def group_fields(fields: Sequence[str]) -> list[str]:
    """The swept fields that tell groups apart: all but the seed."""
    return [field for field in fields if field != SEED]


def summary_cells(
    members: pd.DataFrame, *, fields: Sequence[str], measures: Sequence[str]
) -> SummaryCells:
    """The summary as every format shows it, with `mean ± sd` cells."""
    keys = group_fields(fields)
    lines = [
        (
            *(field_text(group[key]) for key in keys),
            str(group["members"]),
            str(group["failed"]),
            *(spread_text(group[f"{m}_mean"], group[f"{m}_sd"]) for m in measures),
        )
        for group in summary(members, fields=fields, measures=measures).to_dict(
            "records"
        )
    ]
    return SummaryCells((*keys, "members", "failed", *measures), tuple(lines))


def summary_table(
    members: pd.DataFrame,
    *,
    name: str,
    fields: Sequence[str],
    measures: Sequence[str],
) -> "Table":
    """The summary for a terminal; a few measures fit."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = summary_cells(members, fields=fields, measures=measures)
    table = Table(
        title=Text(f"{name}: members by their settings"),
        caption=Text(" ".join(summary_notes(members, measures=measures))),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption_justify="left",
    )
    texts = len(cells.heads) - len(measures) - 2  # columns of fields fold
    for number, head in enumerate(cells.heads):
        table.add_column(
            Text(head.replace(".", ".\n").replace("_", "_\n")),
            justify="left" if number < texts else "right",
            overflow="fold",
            no_wrap=number >= texts,
            vertical="bottom",
        )
    for line in cells.lines:
        table.add_row(*map(Text, line))
    return table


def summary_notes(members: pd.DataFrame, *, measures: Sequence[str]) -> list[str]:
    """What the summary's numbers are, and which of them are undefined for some rows."""
    failed = members.loc[members["status"] != DONE, "member"]
    done = members[~members["member"].isin(failed)]
    notes = ["Mean ± standard deviation over the done members of a line."]
    for measure in measures:
        missing = int(done[measure].isna().sum())
        if missing:
            notes.append(
                f"{measure} is undefined in {missing:,} of {len(done):,} rows of done "
                "members, which its means leave out."
            )
    return notes


def field_text(value: float | str) -> str:
    """A field's value as shown.

    >>> field_text("64,64"), field_text(0.35), field_text(16.0), field_text(1234567)
    ('64,64', '0.35', '16', '1234567')
    """
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def measure_text(number: float) -> str:
    """A measure to four digits, or the whole number from 1,000 on; a dash for none.

    >>> measure_text(0.39514), measure_text(482601.0), measure_text(float("nan"))
    ('0.3951', '482,601', '–')
    """
    if math.isnan(number):
        return MISSING
    return f"{number:,.0f}" if 1e3 <= abs(number) < 1e9 else f"{number:.4g}"


def spread_text(mean: float, sd: float) -> str:
    """Mean ± standard deviation, both to the second digit of the deviation.

    >>> spread_text(0.39514, 0.01234), spread_text(482601.0, 0.0)
    ('0.395 ± 0.012', '482,601 ± 0')
    >>> spread_text(0.39514, float("nan")), spread_text(float("nan"), float("nan"))
    ('0.3951', '–')
    """
    if not math.isfinite(sd):
        return measure_text(mean)
    if sd == 0:
        return f"{measure_text(mean)} ± 0"
    decimals = max(1 - math.floor(math.log10(sd)), 0)
    if decimals > 6 or abs(mean) >= 1e9:
        return f"{mean:.4g} ± {sd:.2g}"
    return f"{mean:,.{decimals}f} ± {sd:,.{decimals}f}"


def _line(
    row: Mapping[str, Any], *, fields: Sequence[str], measures: Sequence[str]
) -> dict[str, Any]:
    """A row with all its columns, each of its kind."""
    where = f"members, {row.get('member')!r}, {row.get('entity')!r}"
    needed = ("member", "entity", "status", *fields)
    lacking = [name for name in needed if name not in row]
    unknown = [name for name in row if name not in (*needed, "reason", *measures)]
    if lacking or unknown:
        raise DataError(
            f"{where}: lacks {lacking or 'nothing'}, has unknown {unknown or 'nothing'}"
            "; give each field, and list every measure in `measures`."
        )
    line = {"reason": "", **row} | {name: row.get(name) for name in measures}
    for name in LEADING:
        if not isinstance(line[name], str):
            raise DataError(f"{where}: {name} is {line[name]!r}; give a text.")
    if line["status"] not in (DONE, FAILED):
        raise DataError(f"{where}: status is {line['status']!r}; give done or failed.")
    for name in fields:
        value = line[name]
        if not isinstance(value, str) and not (
            _is_number(value) and not math.isnan(value)
        ):
            raise DataError(
                f"{where}: {name} is {value!r}; give a number, or a text such as "
                "'64,64'."
            )
    for name in measures:
        if line[name] is None:
            line[name] = math.nan
        elif not _is_number(line[name]):
            raise DataError(
                f"{where}: {name} is {line[name]!r}; give a number, or None for none."
            )
    return line


def _check_members(lines: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> None:
    """Each entity once, and one set of fields for each member."""
    first: dict[str, Mapping[str, Any]] = {}
    seen = set()
    for line in lines:
        member, entity = line["member"], line["entity"]
        if (member, entity) in seen:
            raise DataError(
                f"members, {member!r}: entity {entity!r} comes twice; give one row."
            )
        seen.add((member, entity))
        known = first.setdefault(member, line)
        for name in fields:
            if line[name] != known[name]:
                raise DataError(
                    f"members, {member!r}: {name} is {known[name]!r} in one row and "
                    f"{line[name]!r} in another; a member has one value."
                )


def _frame(columns: Mapping[Any, Sequence[Any]]) -> pd.DataFrame:
    """Columns of what Python's values are: whole numbers, floats, texts, or mixed."""
    return pd.DataFrame({name: pd.Series(list(v)) for name, v in columns.items()})


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _parsed(kind: str | float, cell: str) -> str | float:
    """A cell of the file: text if it stood in quotes, else a whole or other number."""
    if isinstance(kind, str):
        return cell
    return int(cell) if cell.lstrip("-").isdecimal() else float(cell)
