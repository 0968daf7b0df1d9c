"""Errors a user can act on: one clear line that names the file, row or key and ends in what to do.

The command line prints the message and exits with status 2; nothing here is ever shown as a traceback.
"""

import signal
from collections.abc import Iterable, Sequence


class ModalignError(Exception):
    """Base of every error that is the user's to fix."""


class ModelError(ModalignError):
    """A model spec, checkpoint or architecture that cannot be used as asked."""


class DataError(ModalignError):
    """A data spec, file, row, image or caption that cannot be used as asked."""


class RecipeError(ModalignError):
    """A recipe key or value that is unknown, of the wrong type or contradicts another.

    Args:
        problems: each in one line; the message joins them.
        keys: the dotted key each of them is about, where it is about one.
    """

    def __init__(self, *problems: str, keys: Sequence[str] = ()) -> None:
        super().__init__("; ".join(dict.fromkeys(problems)))
        self.problems = problems
        self.keys = tuple(keys) or ("",) * len(problems)


class OutputError(ModalignError):
    """A place to write that is occupied, unwritable or damaged."""


class InterruptedRunError(ModalignError):
    """The user stopped the run; what it had done is kept.

    Args:
        told: the message.
        number: the signal that stopped it; the command line ends with status 128 + its number.
    """

    def __init__(self, told: str, number: signal.Signals = signal.SIGINT) -> None:
        super().__init__(told)
        self.number = number


class TrainingError(ModalignError):
    """Training cannot go on; the last good checkpoint is kept."""


class NonFiniteError(TrainingError):
    """A loss term or gradient became NaN or infinite; the message names the term and the step."""


class ExportError(ModalignError):
    """A target library cannot express the model, or what was exported does not load back the same."""


def first_line(error: BaseException) -> str:
    """What another library's error says, for a line of ours: its first line that is not empty, or else its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(". ")


def few(names: Iterable[str], count: int = 3) -> str:
    """The first names of a list that may be long, and how many follow: "a, b, c and 4 more"."""
    listed = list(names)
    return ", ".join(listed[:count]) + (f" and {len(listed) - count:,} more" if len(listed) > count else "")
