"""A progress bar for the terminal."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

Advance = Callable[[int, float | str | None], None]


@contextlib.contextmanager
def progress_bar(console: Console, title: str, total: int) -> Iterator[Advance]:
    """A bar over `total` windows with loss, windows per second and remaining time.

    It is moved by `advance(windows, loss)`: a text is shown as it is, None changes none.
    """
    with Progress(
        "{task.description:<14}",
        BarColumn(),
        TaskProgressColumn(),
        "{task.fields[rate]}",
        "{task.fields[loss]}",
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        task = progress.add_task(title, total=total, loss="", rate="")

        def advance(windows: int, loss: float | str | None = None) -> None:
            progress.advance(task, windows)
            speed = progress.tasks[0].speed
            if speed is not None:
                progress.update(task, rate=f"{speed:,.0f} windows/s")
            if loss is not None:
                text = loss if isinstance(loss, str) else f"loss {loss:.5f}"
                progress.update(task, loss=text)

        yield advance
        progress.update(task, completed=total)  # Also after early stopping.
