"""Tables of a sweep: one row a member and entity, their means, and their file.

Columns: `member`, `entity`, `status`, `reason`, the swept fields under their dotted names,
the measures. Means are taken over a member's entities first and then over members, so
that a member counts once however many of its entities have a number.
"""

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from kdjax.errors import DataError
from kdjax.io.files import write_text

if TYPE_CHECKING:  # only the terminal's table needs rich
    from rich.table import Table

LEADING = ("member", "entity", "status", "reason")
DONE, FAILED = "done", "failed"
SEED = "seed"  # members that differ in it alone are repetitions
MISSING = "–"


def members_table(
    rows: Iterable[Mapping[str, Any]], fields: Sequence[str]
) -> pd.DataFrame:
    """The table sorted by member; a member's entities keep their order.

    Rows have `LEADING`, a number or text for each field, and measures, which are NaN
    where they are absent or None. DataError where one lacks a value or has a wrong one.
    """
    rows, fixed = list(rows), [*LEADING, *fields]
    measures = dict.fromkeys(key for row in rows for key in row if key not in fixed)
    table = pd.DataFrame(rows, columns=[*fixed, *measures])
    table = table.sort_values("member", kind="stable", ignore_index=True)

    def check(faulty: pd.Series, what: str) -> None:
        if faulty.any():
            row = table[faulty].iloc[0]
            where = f"members, {row['member']!r}, {row['entity']!r}"
            raise DataError(f"{where}: {what}; run the sweep again.")

    for name in fixed:
        check(table[name].isna(), f"{name} has no value")
    check(~table["status"].isin([DONE, FAILED]), "status is neither done nor failed")
    for name in measures:
        numbers = pd.to_numeric(table[name], errors="coerce")
        check(numbers.isna() & table[name].notna(), f"{name} is no number")
        table[name] = numbers.astype("float64")
    return table


def measure_names(members: pd.DataFrame, fields: Sequence[str]) -> tuple[str, ...]:
    """The measures among the columns of the table."""
    return tuple(str(name) for name in members if name not in (*LEADING, *fields))


def write_table(path: str | os.PathLike[str], frame: pd.DataFrame) -> None:
    """Writes a CSV file, whole or not at all.

    Texts are quoted and numbers are not, so that "007" differs from 7; NaN is `nan`.
    """
    text = io.StringIO()
    # `to_csv` with this quoting quotes NaN as well.
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(frame.columns)
    writer.writerows(frame.astype(object).itertuples(index=False, name=None))
    write_text(path, text.getvalue())


def member_means(
    members: pd.DataFrame, *, fields: Sequence[str], measures: Sequence[str]
) -> pd.DataFrame:
    """One row a member: `member`, `status`, fields, each measure's mean over entities.

    Entities without a number are left out; a mean of none is NaN. A member that failed
    on any entity has status `failed` and no means.
    """
    by_member = members.groupby("member", sort=False)
    done = (members["status"] == DONE).groupby(members["member"], sort=False).all()
    means = members.drop_duplicates("member").set_index("member")[["status", *fields]]
    means["status"] = done.map({True: DONE, False: FAILED})
    for measure in measures:
        means[measure] = by_member[measure].mean().where(done)
    return means.reset_index()


def summary_means(
    members: pd.DataFrame, *, fields: Sequence[str], measures: Sequence[str]
) -> pd.DataFrame:
    """Means and standard deviations over the members that differ by their seed alone.

    Columns: the fields without `seed`, `members` (number done), `failed`, and for each
    measure `M_mean` and `M_sd` (ddof 1; NaN for a single member) over the done members
    that have one. A sweep of nothing but the seed is one group.
    """
    means = member_means(members, fields=fields, measures=measures)
    keys = [field for field in fields if field != SEED]
    done = means["status"] == DONE
    number = pd.Series(0, index=means.index)
    if keys:
        number = means.groupby(keys, sort=False).ngroup()
    table = means.loc[~number.duplicated(), keys].reset_index(drop=True)
    table["members"] = done.groupby(number).sum()
    table["failed"] = (~done).groupby(number).sum()
    for measure in measures:
        table[f"{measure}_mean"] = means[measure].groupby(number).mean()
        table[f"{measure}_sd"] = means[measure].groupby(number).std()
    return table


def summary_text(
    members: pd.DataFrame, *, fields: Sequence[str], measures: Sequence[str]
) -> pd.DataFrame:
    """The summary as text, a column `mean ± sd` for each measure."""
    table = summary_means(members, fields=fields, measures=measures)
    text = table[[name for name in fields if name != SEED]].map(field_text)
    text[["members", "failed"]] = table[["members", "failed"]].astype(str)
    for measure in measures:
        pairs = zip(table[f"{measure}_mean"], table[f"{measure}_sd"], strict=True)
        text[measure] = [spread_text(mean, sd) for mean, sd in pairs]
    return text


def summary_table(
    members: pd.DataFrame, *, name: str, fields: Sequence[str], measures: Sequence[str]
) -> "Table":
    """The summary for a terminal, which has room for a few measures."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = summary_text(members, fields=fields, measures=measures)
    table = Table(
        title=Text(f"{name}: members by their settings"),
        caption=Text(" ".join(summary_notes(members, measures=measures))),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption_justify="left",
    )
    for head in map(str, cells):
        is_field = head in fields  # these columns fold
        table.add_column(
            Text(head.replace(".", ".\n").replace("_", "_\n")),
            justify="left" if is_field else "right",
            overflow="fold",
            no_wrap=not is_field,
            vertical="bottom",
        )
    for line in cells.itertuples(index=False, name=None):
        table.add_row(*map(Text, line))
    return table


def summary_notes(members: pd.DataFrame, *, measures: Sequence[str]) -> list[str]:
    """What the summary's numbers are, and which are undefined for some rows."""
    failed = members.loc[members["status"] != DONE, "member"]
    done = members[~members["member"].isin(failed)]
    missing = {measure: int(done[measure].isna().sum()) for measure in measures}
    return ["Mean ± standard deviation over the done members of a line."] + [
        f"{measure} is undefined in {count:,} of {len(done):,} rows of done members, "
        "which its means leave out."
        for measure, count in missing.items()
        if count
    ]


def field_text(value: float | str) -> str:
    """A field's value as shown.

    >>> field_text("64,64"), field_text(0.35), field_text(16.0), field_text(1234567)
    ('64,64', '0.35', '16', '1234567')
    """
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def measure_text(number: float) -> str:
    """A measure to four digits, or a whole number from 1,000 on; a dash for NaN.

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
