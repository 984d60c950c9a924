"""Tables as HTML, Markdown and LaTeX."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

from kdjax.evaluation.sheets import Sheet

UNFOLDED = 30  # lines of a table of the page

# What LaTeX reads as more than a letter, and letters that its usual fonts lack.
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "α": r"$\alpha$",
    "τ": r"$\tau$",
}


def html_table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in its own scrolling box; `heads` are HTML, `lines` are text."""
    head = "".join(f"<tr>{row}</tr>" for row in heads)
    body = "".join(
        f"<tr><th>{escape(first)}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>\n"
        for first, *rest in lines
    )
    return (
        f'<div class="scroll"><table><thead>{head}</thead>\n<tbody>{body}</tbody>'
        "</table></div>"
    )


def heads(names: Iterable[str]) -> list[str]:
    """One line of column names as HTML."""
    return ["".join(f"<th>{escape(name)}</th>" for name in names)]


def html_sheet(sheet: Sheet) -> str:
    """A section of the page; without a heading where it has no title.

    A table of more than `UNFOLDED` lines is folded.
    """
    table = html_table(_html_heads(sheet), sheet.lines)
    if len(sheet.lines) > UNFOLDED:
        summary = f"<summary>{len(sheet.lines):,} lines</summary>"
        table = f"<details>{summary}{table}</details>"
    title = f"<h2>{escape(sheet.title)}</h2>\n" if sheet.title else ""
    words = f'<p class="soft">{escape(sheet.words)}</p>' if sheet.words else ""
    return f"{title}{table}{words}"


def markdown_sheet(sheet: Sheet) -> str:
    """A section of GitHub Markdown."""
    rules = ["---", *["---:"] * (len(sheet.heads) - 1)]
    lines = [_markdown_line(line) for line in (_flat_heads(sheet), rules, *sheet.lines)]
    title = f"## {sheet.title}" if sheet.title else ""
    parts = [title, "\n".join(lines), markdown_text(sheet.words)]
    return "\n\n".join(filter(None, parts)) + "\n"


def latex_sheet(sheet: Sheet) -> str:
    """A `tabular` that needs no package; its title and words stand above as comments."""
    comments = [f"% {' '.join(text.split())}" for text in (sheet.title, sheet.words)]
    lines = [
        f"\\begin{{tabular}}{{l{'r' * (len(sheet.heads) - 1)}}}",
        r"\hline",
        *(_latex_line(line) for line in _latex_heads(sheet)),
        r"\hline",
        *(_latex_line(map(latex_text, line)) for line in sheet.lines),
        r"\hline",
        r"\end{tabular}",
    ]
    return "\n".join([*(c for c in comments if c != "% "), *lines]) + "\n"


def latex_text(text: str) -> str:
    """Text that LaTeX prints as it stands, on one line.

    >>> print(latex_text("5 % of τ_1"))
    5 \\% of $\\tau$\\_1
    """
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it stands, on one line.

    >>> print(markdown_text("a|b<c"))
    a\\|b\\<c
    """
    return re.sub(r"([\\`*|<\[])", r"\\\1", " ".join(text.split()))


def _html_heads(sheet: Sheet) -> list[str]:
    if not sheet.groups:
        return heads(sheet.heads)
    above, below = [], []
    for group, members in groupby(
        zip(sheet.groups, sheet.heads, strict=True), key=lambda pair: pair[0]
    ):
        names = [f"<th>{escape(name)}</th>" for _, name in members]
        if group:
            above.append(f'<th colspan="{len(names)}">{escape(group)}</th>')
            below += names
        else:  # It stands in both lines.
            above += [name.replace("<th>", '<th rowspan="2">', 1) for name in names]
    return ["".join(above), "".join(below)]


def _flat_heads(sheet: Sheet) -> list[str]:
    if not sheet.groups:
        return [*sheet.heads]
    return [
        f"{group}: {name}" if group else name
        for group, name in zip(sheet.groups, sheet.heads, strict=True)
    ]


def _latex_heads(sheet: Sheet) -> list[list[str]]:
    names = [latex_text(name) for name in sheet.heads]
    if not sheet.groups:
        return [names]
    groups = [
        (latex_text(group), len([*members])) for group, members in groupby(sheet.groups)
    ]
    return [
        [f"\\multicolumn{{{size}}}{{c}}{{{group}}}" for group, size in groups],
        names,
    ]


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _markdown_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(markdown_text, cells)) + " |"
