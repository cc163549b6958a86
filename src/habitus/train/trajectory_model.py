"""A diffusion model of stretches of a log: short trajectories, whole, as likely as logged ones."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.domains import require
from habitus.core.errors import DataError, SpaceMismatch
from habitus.data.dataset import Dataset
from habitus.data.windows import window_starts
from habitus.generative.columns import Columns
from habitus.generative.denoisers import UNet
from habitus.generative.edm import Denoiser, denoising_loss
from habitus.generative.samplers import Churn, Guidance, sample
from habitus.generative.schedules import karras
from habitus.generative.training import train


class TrajectoryModel(eqx.Module):
    """What a log's trajectories look like, `length` steps at a time.

    Attributes:
        denoiser: of windows [length, columns].
        columns: what the columns are.
        length: steps of a window.
    """

    denoiser: Denoiser
    columns: Columns
    length: int = eqx.field(static=True)

    def sample(
        self,
        key: PRNGKeyArray,
        windows: int,
        *,
        steps: int = 32,
        churn: Churn | None = None,
        guidance: Guidance | None = None,
    ) -> Float[Array, "windows time columns"]:
        """Fresh windows, in `steps` steps of Heun's method; `columns` makes transitions of them."""
        sigmas = karras(steps)

        def one(key: PRNGKeyArray) -> Array:
            noise_key, churn_key = jax.random.split(key)
            noise = jax.random.normal(noise_key, (self.length, self.columns.size))
            return sample(self.denoiser, noise, sigmas, churn_key, churn=churn, guidance=guidance)

        return jax.vmap(one)(jax.random.split(key, windows))


def check_trajectories(log: Dataset) -> None:
    """Raises `SpaceMismatch` or `DataError` unless a log is one that trajectories can be modelled of."""
    log.spec.require("bounded", "a diffusion model of trajectories")
    if log.spec.tabular or log.spec.image:
        raise SpaceMismatch(
            f"a diffusion model of trajectories needs vectors as observations, but they are {log.observation_space}."
        )
    outside = np.flatnonzero((np.abs(np.asarray(log.canonical().action[:])) > 1 + 1e-4).any(-1))
    if len(outside):
        raise DataError(
            f"{log.name}: the action of row {outside[0]} (and of {len(outside) - 1} others) is outside the bounds "
            f"{log.action_space}; clip the actions, or widen the action space."
        )


def fit_trajectories(
    log: Dataset,
    key: PRNGKeyArray,
    *,
    length: int = 16,
    stride: int = 4,
    features: int = 32,
    blocks: int = 2,
    steps: int = 4_000,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    holdout: float = 0.05,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[TrajectoryModel, float]:
    """Learns what the trajectories of a log look like.

    Args:
        length, stride: of the windows that it learns from, see `window_starts`.
        features, blocks: of the U-Net.
        steps, batch_size, learning_rate: of Adam.
        holdout: share of the episodes that judge the model (none, if there is only one episode).
        progress: told the steps done and the mean loss since it was last told.

    Returns:
        the model, and its mean loss on the windows of the held-out episodes (NaN if there are none).

    Raises:
        ConfigError: if a number is out of its domain.
        DataError: if no episode is long enough, or an action is outside its bounds.
        SpaceMismatch: if observations are not vectors, or actions not real and bounded.
        Diverged: if a parameter stops being finite.
    """
    require(0 <= holdout < 1, f"holdout is a share of the episodes, in [0, 1), but is {holdout}.")
    require(length >= 2, f"length must be 2 or more, as a transition spans two steps, but is {length}.")
    check_trajectories(log)
    order_key, net_key, fit_key, judge_key = jax.random.split(key, 4)
    rows = log.canonical().transitions(slice(None))
    columns = Columns.of(rows)
    starts = window_starts(log, length, stride)
    episode = np.asarray(jax.random.permutation(order_key, len(log.starts)))
    held = np.isin(log.episode_of(starts), episode[: round(holdout * len(episode))])
    if held.all():
        raise DataError(f"{log.name} has windows of {length} steps only in what is held out; lower holdout.")
    windows = columns.pack(rows)[starts[:, None] + np.arange(length)]
    model = Denoiser(UNet(columns.size, features, blocks, net_key))
    model, _ = train(
        model, denoising_loss, windows[~held], fit_key, steps=steps, batch_size=batch_size,
        learning_rate=learning_rate, progress=progress,
    )  # fmt: skip
    return TrajectoryModel(model, columns, length), float(_judge(model, windows[held], judge_key))


@eqx.filter_jit
def _judge(model: Denoiser, windows: Float[Array, "windows time columns"], key: PRNGKeyArray) -> Array:
    return jax.vmap(lambda x, k: denoising_loss(model, x, k))(windows, jax.random.split(key, len(windows))).mean()
