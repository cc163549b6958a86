"""One small hierarchy: everything habitus raises on purpose is a `HabitusError`."""

from __future__ import annotations


class HabitusError(Exception):
    """Base of every error that habitus raises on purpose."""


class ConfigError(HabitusError, ValueError):
    """A hyperparameter or argument is outside its domain."""


class DataError(HabitusError, ValueError):
    """A data set or file is malformed; the message names the file, the rows and the remedy."""


class FormulaError(ConfigError):
    """A formula in text cannot be read.

    Attributes:
        text: the formula.
        column: where it goes wrong, from 1.
    """

    def __init__(self, problem: str, text: str, column: int):
        self.text, self.column = text, column
        shown = "".join(" " if letter.isspace() else letter for letter in text)
        super().__init__(f"column {column}: {problem}\n    {shown}\n    {' ' * (column - 1)}^")


class SpaceMismatch(HabitusError, TypeError):
    """Two things that must act in the same spaces do not, or a method cannot act in this space."""


class UnknownName(HabitusError, LookupError):
    """No environment, data set or method has this name; the message says what is near."""


class RunExists(HabitusError, FileExistsError):
    """The run folder already holds a run; resume it or overwrite it."""


class CheckpointError(HabitusError):
    """A saved run or policy cannot be restored into what was asked for."""


class ExportError(HabitusError):
    """A policy cannot be exported, or what was exported does not do what the policy does."""


class Diverged(HabitusError, ArithmeticError):
    """A loss or a parameter stopped being finite.

    Attributes:
        metric: name of the first quantity that was not finite.
        step: update at the end of the chunk in which it happened.
        checkpoint: folder of the last good checkpoint, or None.
    """

    def __init__(self, metric: str, step: int, checkpoint: str | None):
        self.metric, self.step, self.checkpoint = metric, step, checkpoint
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was kept"
        super().__init__(
            f"{metric} stopped being finite by update {step}; {kept}. "
            "Lower the learning rate, or scale the rewards, and resume from it."
        )


class MissingExtra(HabitusError, ImportError):
    """An optional dependency is not installed.

    Args:
        what: what was asked for, in the user's words.
        extra: the extra of habitus that brings it.
    """

    def __init__(self, what: str, extra: str):
        super().__init__(f'{what} needs an optional dependency: pip install "habitus[{extra}]"')


def suggest(name: str, known: list[str]) -> str:
    """A clause naming the known names nearest to `name`, for error messages."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=3, cutoff=0.4)
    return f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
