"""Paper, ink and axes of every figure, in light and dark, and how figures are saved."""

import io
import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdjax.io.files import atomic_path

INK = {"light": "#30343b", "dark": "#c9ced6"}
PAPER = {"light": "#ffffff", "dark": "#181b20"}
# Of curves, in their order; `kdjax.evaluation.page` gives the same to its styles.
COLORS = {
    "light": ("#1f6fb2", "#d9541e", "#2e8b57", "#8a4fb0", "#8a6d1f"),
    "dark": ("#6db3f2", "#ff9660", "#6fcf97", "#c79bec", "#d9bd6a"),
}


def blank(width: float, height: float, theme: str) -> Figure:
    """A figure of that many inches, its margins fixed: measuring them doubles the time."""
    figure = Figure(figsize=(width, height), facecolor=PAPER[theme])
    figure.subplots_adjust(
        left=0.75 / width,
        right=1 - 0.3 / width,
        bottom=0.5 / height,
        top=1 - 0.15 / height,
    )
    return figure


def dress(axes: Axes, theme: str) -> None:
    """Colours, sizes and spines of axes."""
    ink = INK[theme]
    axes.set_facecolor(PAPER[theme])
    axes.tick_params(colors=ink, which="both", labelsize=8)
    axes.xaxis.label.set_color(ink)
    axes.yaxis.label.set_color(ink)
    axes.xaxis.get_offset_text().set_color(ink)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(ink)


def saved(figure: Figure, path: str | os.PathLike[str] | None, format: str) -> bytes:
    """The picture, and the file at `path`, whose ending chooses the format."""
    if path is not None:
        format = Path(path).suffix.lstrip(".") or format
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=110)
    if path is not None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
    return buffer.getvalue()
