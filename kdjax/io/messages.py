"""Functions that act when they are called, and say what they do as they go."""

import functools
from collections.abc import Callable, Iterator
from typing import Any


def acting(function: Callable[..., Iterator[str]]) -> Callable[..., list[str]]:
    """A generator of messages as a function that acts at once and returns them.

    The function takes one more argument, `log`: a callable for each message as it comes,
    such as `print`.

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
