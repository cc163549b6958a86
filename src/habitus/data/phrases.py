"""Phrases for motions: "move arm forward and close gripper", from what a robot did.

S. Belkhale et al., "RT-H: Action Hierarchies Using Language", RSS 2024, section 4.1: labels without a human.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, Int

from habitus.core.domains import require
from habitus.core.errors import ConfigError, DataError, suggest
from habitus.data.dataset import Dataset
from habitus.data.parts import with_parts

STOP, AND = "stop", " and "
# the nine dimensions of RT-H: three of position, three of orientation, two of the base, and the gripper, which opens
# with growing width. The words are of the robot's frame.
ARM = (
    ("move arm forward", "move arm backward"),
    ("move arm left", "move arm right"),
    ("move arm up", "move arm down"),
    ("roll arm left", "roll arm right"),
    ("tilt arm up", "tilt arm down"),
    ("rotate arm left", "rotate arm right"),
    ("move base forward", "move base backward"),
    ("turn base left", "turn base right"),
    ("open gripper", "close gripper"),
)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The words of motions, one for each direction of each dimension.

    A phrase is a row of tokens [dimensions]: the greatest motion first, then 0s. Token `1 + 2 i` is dimension i
    growing, `2 + 2 i` shrinking.

    Attributes:
        words: for each dimension (growing, shrinking).
        scale: for each dimension, a change that counts as 1; all 1 if left out.
        threshold: changes below this, after scaling, have no word.

    Raises:
        ConfigError: if a word occurs twice or holds "and", or a scale or the threshold is not above 0.
    """

    words: tuple[tuple[str, str], ...] = ARM
    scale: tuple[float, ...] | None = None
    threshold: float = 0.25

    def __post_init__(self) -> None:
        known = self.known
        require(len(set(known)) == len(known), "each direction needs a word of its own.")
        plain = all(word.strip().lower() == word and word for word in known)
        require(plain, "words are in lower case, with no blanks at either end.")
        require(not any(AND in word or word == STOP for word in known), "words must not be 'stop' or hold 'and'.")
        require(self.threshold > 0, f"threshold must be above 0, but is {self.threshold}.")
        scale = (1.0,) * len(self.words) if self.scale is None else self.scale
        fits = len(scale) == len(self.words) and all(s > 0 for s in scale)
        require(fits, f"scale needs a number above 0 for each of {len(self.words)} dimensions, but is {scale}.")

    @property
    def known(self) -> tuple[str, ...]:
        """Every word, in the order of the tokens from 1."""
        return tuple(word for pair in self.words for word in pair)

    @property
    def space(self) -> spaces.MultiDiscrete:
        """The space of one phrase."""
        return spaces.MultiDiscrete([len(self.known) + 1] * len(self.words))

    def tokens(self, change: Float[np.ndarray, "*rows dimensions"]) -> Int[np.ndarray, "*rows dimensions"]:
        """The phrases of changes; among equal ones the earlier dimension comes first."""
        if change.shape[-1] != len(self.words):
            raise DataError(f"changes have {change.shape[-1]} dimensions, but there are words for {len(self.words)}.")
        size = np.abs(change) / np.asarray(1.0 if self.scale is None else self.scale)
        named = np.where(size < self.threshold, 0, 1 + 2 * np.arange(change.shape[-1]) + (change < 0))
        order = np.argsort(np.where(named > 0, -size, np.inf), axis=-1, kind="stable")
        return np.take_along_axis(named, order, -1).astype(np.int64)

    def render(self, tokens: Int[np.ndarray, "dimensions"]) -> str:
        """A phrase in words; "stop" if it has none."""
        return AND.join(self.known[token - 1] for token in tokens if token > 0) or STOP

    def parse(self, phrase: str) -> Int[np.ndarray, "dimensions"]:
        """The tokens of a phrase; inverse of `render`. An empty one is "stop".

        Raises:
            ConfigError: for an unknown word, or two about one dimension.
        """
        words = [word.strip() for word in phrase.strip().lower().split(AND)]
        words = [] if words in ([""], [STOP]) else words
        unknown = [word for word in words if word not in self.known]
        if unknown:
            allowed = ", ".join([*self.known, STOP])
            raise ConfigError(f"{unknown[0]!r}: {suggest(unknown[0], list(self.known))} The words are {allowed}.")
        found = [self.known.index(word) + 1 for word in words]
        if len({(token - 1) // 2 for token in found}) < len(found):
            raise ConfigError(f"{phrase!r} says two things about one dimension; say one of them.")
        return np.array(found + [0] * (len(self.words) - len(found)), np.int64)


def label_motions(
    log: Dataset,
    pose: Callable[[Any], np.ndarray],
    vocabulary: Vocabulary,
    window: int = 4,
    name: str = "phrase",
) -> Dataset:
    """The log with the phrase of what is about to be achieved beside each observation.

    Labels come from poses and not from commands, over a window and not from one step: commands are noisy, and phrases
    that flicker cannot be predicted. A phrase policy learns this part from the others; an action policy is given it.

    Args:
        log: the log.
        pose: of observations [rows, ...], the poses [rows, dimensions].
        vocabulary: the words of the dimensions.
        window: steps ahead over which the change is taken; fewer at the end of an episode.
        name: of the new part, a MultiDiscrete of tokens; `vocabulary.render` puts them into words.

    Raises:
        ConfigError: if the window is below 1, or the observations have a part of that name already.
        DataError: if the poses do not fit the words.
    """
    require(window >= 1, f"window must be 1 or more, but is {window}.")
    obs, next_obs = (jax.tree.map(np.asarray, column) for column in (log.obs, log.next_obs))
    then = np.minimum(np.arange(len(log)) + window - 1, np.repeat(log.ends, log.lengths))
    change = np.asarray(pose(next_obs))[then] - np.asarray(pose(obs))
    return with_parts(log, {name: (vocabulary.tokens(change), vocabulary.space)})
