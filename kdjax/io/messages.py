"""Output on a terminal: messages of running functions, and a progress bar."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[int, float | str | None], None]


def acting(function: Callable[..., Iterator[str]]) -> Callable[..., list[str]]:
    """A generator of messages as a function that runs at once and returns them.

    The function takes one more argument, `log`: a callable, such as `print`, that receives
    each message at once.

    >>> @acting
    ... def count(number):
    ...     for i in range(number):
    ...         yield f"{i} of {number}"
    >>> count(2, log=print)
    0 of 2
    1 of 2
    ['0 of 2', '1 of 2']
    """

    @functools.wraps(function)
    def act(
        *arguments: Any, log: Callable[[str], Any] | None = None, **options: Any
    ) -> list[str]:
        messages = []
        for message in function(*arguments, **options):
            messages.append(message)
            if log is not None:
                log(message)
        return messages

    return act


@contextlib.contextmanager
def progress_bar(console: "Console", title: str, total: int) -> Iterator[Advance]:
    """A bar over `total` windows with loss, windows per second and remaining time.

    `advance(windows, loss)` moves it: a text is shown unchanged, None keeps the last one.
    """
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TimeRemainingColumn,
    )

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
        progress.update(task, completed=total)  # also after early stopping
