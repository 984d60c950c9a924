"""The results table: the paper's Table 1, extended by controls and honest thresholds.

Table 1 has one precision, recall and F1 a model. Here the oracle's numbers (τ chosen on
the test labels) stand beside the label-free ones, pooled counts beside means over
entities, and every model beside the controls. One function makes the cells that
terminal, Markdown and report show.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # only the terminal's table needs rich
    from rich.table import Table

MISSING = "–"
Results = Mapping[str, Any]  # what results.json holds


class Column(NamedTuple):
    """One column of metrics: its heading and the cell of the grid that it shows."""

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
    """The metric columns of the table, left to right."""
    method = label_free_method(results)
    oracle = ("oracle", "pooled", "window")
    return (
        Column("oracle, pooled", "P", *oracle, "precision"),
        Column("oracle, pooled", "R", *oracle, "recall"),
        Column("oracle, pooled", "F1", *oracle, "f1"),
        Column("oracle, mean", "F1", "oracle", "per_entity_mean", "window", "f1"),
        Column("own τ, pooled", "F1", method, "pooled", "window", "f1"),
        Column("own τ, mean", "F1", method, "per_entity_mean", "window", "f1"),
        Column(
            "points, mean",
            "AP",
            "oracle",
            "per_entity_mean",
            "point",
            "average_precision",
        ),
    )


def models(results: Results) -> list[str]:
    """The models in the order in which `results["rows"]` first names them."""
    return list(dict.fromkeys(row["model"] for row in results["rows"]))


def value(results: Results, model: str, column: Column) -> float | None:
    """The number that `column` shows for `model`; None where undefined or absent."""
    for row in results["rows"]:
        if (row["model"], row["threshold"], row["scope"], row["level"]) == (
            model,
            column.threshold,
            column.scope,
            column.level,
        ):
            number: float | None = row.get(column.metric)
            return number
    return None


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
        numbers = [number_text(value(results, model, column)) for column in shown]
        lines.append((model, MISSING if count is None else f"{count:,}", *numbers))
    return Cells(shown, tuple(lines))


def caption(results: Results) -> str:
    """What the numbers were measured on, and what the column names mean."""
    data = results["dataset"]
    method = label_free_method(results)
    random = " random: scores drawn at random, for comparison."
    return (
        f"Windows of {_integer(data['window'])} rows, stride {_integer(data['stride'])}, "
        "anomalous from min_anomalous_points = "
        f"{_integer(data['min_anomalous_points'])} on: {_integer(data['windows'])} "
        f"windows, {_integer(data['positive_windows'])} positive, "
        f"{entity_count(data)}. "
        f"oracle: τ chosen on the test labels; own τ: {method}, without labels. "
        "P precision, R recall; pooled: counts of all entities together; mean: of the "
        "entities' own metric; AP: average precision of row scores."
        + (random if "random" in models(results) else "")
    )


def entity_count(dataset: Mapping[str, Any]) -> str:
    """`1 entity`, `28 entities`: of a `dataset` entry with a number or with names."""
    entities = dataset["entities"]
    number = entities if isinstance(entities, int) else len(entities)
    return f"{number:,} {'entity' if number == 1 else 'entities'}"


def results_table(results: Results) -> "Table":
    """The table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = table_cells(results)
    table = Table(
        title=Text(f"{results['dataset']['name']}: detection by windows"),
        caption=Text(caption(results)),
        box=box.SIMPLE_HEAD,
        # Nine columns in the 80 characters of a plain terminal.
        padding=0,
        caption_justify="left",
    )
    table.add_column("\n\nModel", min_width=14, overflow="fold")
    table.add_column("\n\nParameters", justify="right", no_wrap=True)
    for column in cells.columns:
        heading = f"{column.group.replace(', ', chr(10))}\n{column.name}"
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for line in cells.lines:
        table.add_row(*(Text(cell) for cell in line))
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
