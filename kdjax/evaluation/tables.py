"""The results table: the paper's Table 1, extended by baselines and honest thresholds.

Table 1 has one precision, recall and F1 a model. Here the oracle's numbers (τ chosen on
the test labels) stand beside the label-free ones, pooled counts beside means over
entities, and every model beside the baselines. One function makes the cells that
terminal, Markdown and report show.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # only the terminal's tables need rich
    from rich.console import Group
    from rich.table import Table

MISSING = "–"
COSTS = "costs"
Results = Mapping[str, Any]  # what results.json holds


# Columns of metrics that the terminal's table has room for.
_NARROW = 7


class Column(NamedTuple):
    """One column of metrics: its heading and the cell of the grid that it shows.

    `COSTS` as threshold stands for `results["costs"]`, which has no grid.
    """

    group: str
    name: str
    threshold: str
    scope: str
    level: str
    metric: str


class Cells(NamedTuple):
    """The table as text: columns of metrics, and a line a model."""

    columns: tuple[Column, ...]
    lines: tuple[tuple[str, ...], ...]  # model, parameters, one cell a column


def label_free_method(results: Results) -> str:
    """The name of the label-free rule in `results`, such as `conformal`."""
    names = [row["threshold"] for row in results["rows"]]
    return next((name for name in names if name != "oracle"), "conformal")


def columns(results: Results) -> tuple[Column, ...]:
    """The metric columns of the table, left to right; those after AP only with content."""
    method = label_free_method(results)
    oracle = ("oracle", "pooled", "window")
    points = ("oracle", "per_entity_mean", "point")
    always = (
        Column("oracle, pooled", "P", *oracle, "precision"),
        Column("oracle, pooled", "R", *oracle, "recall"),
        Column("oracle, pooled", "F1", *oracle, "f1"),
        Column("oracle, mean", "F1", "oracle", "per_entity_mean", "window", "f1"),
        Column("own τ, pooled", "F1", method, "pooled", "window", "f1"),
        Column("own τ, mean", "F1", method, "per_entity_mean", "window", "f1"),
        Column("points, mean", "AP", *points, "average_precision"),
    )
    further = (
        Column("points, mean", "VUS-PR", *points, "vus_pr"),
        Column("costs", "bytes", COSTS, "", "", "bytes"),
        Column("costs", "ms", COSTS, "", "", "milliseconds"),
    )
    names = models(results)
    return always + tuple(
        column
        for column in further
        if any(value(results, name, column) is not None for name in names)
    )


def models(results: Results) -> list[str]:
    """The models in the order in which `results["rows"]` first names them."""
    return list(dict.fromkeys(row["model"] for row in results["rows"]))


def value(results: Results, model: str, column: Column) -> float | None:
    """The number that `column` shows for `model`; None where undefined or absent."""
    number: float | None = _row(results, model, column).get(column.metric)
    return number


def _row(results: Results, model: str, column: Column) -> Mapping[str, Any]:
    """What holds a column's number of a model; empty for none."""
    if column.threshold == COSTS:
        costs = (results.get("costs") or {}).get(model)
        return costs or {}
    place = (model, column.threshold, column.scope, column.level)
    for row in results["rows"]:
        if (row["model"], row["threshold"], row["scope"], row["level"]) == place:
            found: Mapping[str, Any] = row
            return found
    return {}


def parameters(results: Results, model: str) -> int | None:
    """How many parameters `model` has; None where that has no meaning."""
    numbers = [row["parameters"] for row in results["rows"] if row["model"] == model]
    return numbers[0] if numbers else None


def number_text(number: float | None) -> str:
    """A metric to three decimals; an en dash where there is none.

    >>> number_text(0.3951), number_text(None)
    ('0.395', '–')
    """
    return MISSING if number is None else f"{number:.3f}"


def table_cells(results: Results) -> Cells:
    """The table's columns and lines, which every format shows alike."""
    shown = columns(results)
    lines = []
    for model in models(results):
        count = parameters(results, model)
        numbers = [_cell(value(results, model, column), column) for column in shown]
        lines.append((model, MISSING if count is None else f"{count:,}", *numbers))
    return Cells(shown, tuple(lines))


def _cell(number: float | None, column: Column) -> str:
    if column.metric == "bytes":
        return _integer(None if number is None else int(number))
    return number_text(number)


def undefined_words(results: Results) -> str:
    """Why some metrics of the table have no number; empty where all have one."""
    reasons: dict[str, list[str]] = {}
    for model in models(results):
        for column in columns(results):
            notes = _row(results, model, column).get("notes") or {}
            if value(results, model, column) is None and column.metric in notes:
                reasons.setdefault(notes[column.metric], []).append(model)
    return " ".join(
        f"{MISSING}: {reason} ({', '.join(dict.fromkeys(names))})."
        for reason, names in reasons.items()
    )


def caption(results: Results) -> str:
    """What the numbers were measured on, and what the column names mean."""
    data = results["dataset"]
    method = label_free_method(results)
    further = " random: scores drawn at random, for comparison."
    if "random" not in models(results):
        further = ""
    if results.get("costs"):
        further += " costs: bytes of the exported file; ms a window on one core."
    return (
        f"Windows of {_integer(data['window'])} rows, stride {_integer(data['stride'])}, "
        "anomalous from min_anomalous_points = "
        f"{_integer(data['min_anomalous_points'])} on: {_integer(data['windows'])} "
        f"windows, {_integer(data['positive_windows'])} positive, "
        f"{entity_count(data)}. "
        f"oracle: τ chosen on the test labels; own τ: {method}, without labels. "
        "P precision, R recall; pooled: counts of all entities together; mean: of the "
        "entities' own metric; AP: average precision of row scores." + further
    )


def entity_count(dataset: Mapping[str, Any]) -> str:
    """`1 entity`, `28 entities`: of a `dataset` entry with a number or with names."""
    entities = dataset["entities"]
    number = entities if isinstance(entities, int) else len(entities)
    return f"{number:,} {'entity' if number == 1 else 'entities'}"


def results_table(results: Results) -> "Group":
    """The table for a terminal; what is too wide for 80 characters in a second one."""
    from rich.console import Group
    from rich.text import Text

    cells = table_cells(results)
    tables = [_terminal_table(cells, slice(0, _NARROW), parameters=True)]
    if len(cells.columns) > _NARROW:
        tables.append(_terminal_table(cells, slice(_NARROW, None), parameters=False))
    tables[0].title = Text(f"{results['dataset']['name']}: detection by windows")
    return Group(*tables, Text(caption(results)))


def _terminal_table(cells: Cells, shown: slice, *, parameters: bool) -> "Table":
    """Models and some of the columns of metrics."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Nine columns in the 80 characters of a plain terminal.
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("\n\nModel", min_width=14, overflow="fold")
    if parameters:
        table.add_column("\n\nParameters", justify="right", no_wrap=True)
    for column in cells.columns[shown]:
        heading = f"{column.group.replace(', ', chr(10))}\n{column.name}"
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for line in cells.lines:
        fixed = line[:2] if parameters else line[:1]
        table.add_row(*map(Text, (*fixed, *line[2:][shown])))
    return table


def unlabelled_table(results: Results) -> "Table":
    """Models, sizes and shares of test windows in alarm, for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(f"{results['dataset']['name']}: no labels to judge by"),
        box=box.SIMPLE_HEAD,
    )
    table.add_column("Model")
    for name in ("Parameters", "Test windows in alarm"):
        table.add_column(name, justify="right")
    for line in alarm_rates(results):
        table.add_row(*map(Text, line))
    return table


def alarm_rates(results: Results) -> list[tuple[str, str, str]]:
    """Model, parameters and the pooled share of test windows above τ, as text."""
    method = label_free_method(results)
    return [
        (
            row["model"],
            _integer(row["parameters"]),
            MISSING if row["alarm_rate"] is None else f"{row['alarm_rate']:.2%}",
        )
        for row in results["rows"]
        if (row["threshold"], row["scope"], row["level"])
        == (method, "pooled", "window")
    ]


def rates_table(results: Results) -> "Table":
    """Wanted and realised shares of false alarms of the student, for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title="False alarms of the student: share of normal windows",
        box=box.SIMPLE_HEAD,
        caption="Left out: calibration windows under the τ of the others. Clean test: "
        "windows without a labelled row. Intervals: 95 %, from windows that share no row.",
        caption_justify="left",
    )
    table.add_column("Entity", overflow="fold")
    for name in ("Rule", "Wanted", "Left out", "Clean test"):
        table.add_column(name, justify="right")
    for rate in results.get("rates", ()):
        if rate["model"] == "student":
            used = "*" if rate["used"] else ""
            left_out, clean = (
                " ".join(rate_texts(rate[name])) for name in ("left_out", "clean_test")
            )
            wanted = f"{rate['wanted']:.2%}"
            line = (rate["entity"], rate["method"] + used, wanted, left_out, clean)
            table.add_row(*map(Text, line))
    return table


def rate_texts(found: Mapping[str, Any] | None) -> tuple[str, str]:
    """A realised share and its interval as text, from an object of `results["rates"]`."""
    if found is None or found["rate"] is None:
        return ("too few windows" if found and found["detail"] else MISSING), ""
    return f"{found['rate']:.2%}", f"({found['low']:.1%}–{found['high']:.1%})"


def markdown_table(results: Results) -> str:
    """The table as GitHub Markdown, its caption below."""
    cells = table_cells(results)
    heads = ["Model", "Parameters"]
    heads += [f"{column.group}: {column.name}" for column in cells.columns]
    rules = ["---", *["---:"] * (len(heads) - 1)]
    lines = [_markdown_line(line) for line in (heads, rules, *cells.lines)]
    return "\n".join([*lines, "", caption(results)]) + "\n"


def _markdown_line(cells: Sequence[str]) -> str:
    escaped = [cell.replace("\\", "\\\\").replace("|", "\\|") for cell in cells]
    return "| " + " | ".join(" ".join(cell.split()) for cell in escaped) + " |"


def _integer(number: int | None) -> str:
    return MISSING if number is None else f"{number:,}"
