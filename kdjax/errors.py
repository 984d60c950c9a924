"""The errors that kdjax raises for faults of its input.

Every message names the fault, its place, the expected value and the remedy. The program
prints that one message and ends with exit code 2.
"""

import difflib
from collections.abc import Iterable


class KdjaxError(Exception):
    """Base of the errors that a user of kdjax can cause and correct."""


class DataError(KdjaxError, ValueError):
    """Rows, labels or data files that are invalid."""


class ConfigError(KdjaxError, ValueError):
    """Settings that are unknown, of the wrong type, or contradict each other."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number and its noun.

    >>> counted(1, "event"), counted(2000, "entity", "entities")
    ('1 event', '2,000 entities')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def one_line(error: BaseException) -> str:
    """The message of an error on one line; its type where it has none.

    >>> one_line(ValueError("two\\nlines")), one_line(MemoryError())
    ('two lines', 'MemoryError')
    """
    return " ".join(str(error).split()) or type(error).__name__


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The nearest known name in brackets; empty if none is near.

    >>> did_you_mean("scor_", ("run", "score"))
    " (did you mean 'score'?)"
    """
    near = difflib.get_close_matches(str(name), [*known], n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def check_choice(name: str, value: object, known: Iterable[str]) -> None:
    """Raises ConfigError unless a value is one of the known choices.

    >>> check_choice("way", "alone", ("together", "alone"))
    """
    if value not in (choices := [*known]):
        raise ConfigError(
            f"{name}={value!r} is unknown: use one of {', '.join(choices)}"
            f"{did_you_mean(value, choices)}."
        )


class TrainingError(KdjaxError):
    """Training that can't continue because its loss is not finite.

    Attributes:
        step: the step with the first loss that is not finite.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class ArtifactError(KdjaxError):
    """A damaged checkpoint, detector or work directory, or one of another program."""
