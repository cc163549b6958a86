"""Dichotomy of Control with tables, for logs of integers: latents, policy and values are looked up.

Each pair of a state and an action has a posterior over latents for every return that followed it. The
constraint is that a latent tells no more of the return than the action does.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.errors import ConfigError, DataError, SpaceMismatch
from habitus.core.experience import Trajectory
from habitus.core.protocols import Learner, Policy, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, descend
from habitus.nets.distributions import Categorical
from habitus.nets.losses import straight_through
from habitus.nets.policies import Sampling

MOST_LEVELS = 64
TINY = 1e-12

Joint = Float[Array, "states actions levels"]


class Lookup(eqx.Module):
    """Logits of the actions in each state."""

    logits: Float[Array, "states actions"]

    def __call__(self, obs: Int[Array, ""]) -> Categorical:
        return Categorical(self.logits[obs])


class Tables(eqx.Module):
    """Logits of the posterior `q(z|s, a, R)`, of the policy `pi(a|s, z)` and of the value `p(R|s, z)`."""

    posterior: Float[Array, "states actions levels latents"]
    policy: Float[Array, "states latents actions"]
    value: Float[Array, "states latents levels"]

    @classmethod
    def random(cls, shape: tuple[int, int, int], key: PRNGKeyArray) -> Tables:
        """Truncated normals; as many latents as pairs of an action and a return."""
        s, a, r = shape
        sizes = ((s, a, r, a * r), (s, a * r, a), (s, a * r, r))
        return cls(
            *(jax.random.truncated_normal(k, -2, 2, n) for k, n in zip(jax.random.split(key, 3), sizes, strict=True))
        )

    def latents(self, joint: Joint) -> Float[Array, "states actions levels latents"]:
        """`p(s, a, R, z)`: the log's frequencies, each row spread over the latents by the posterior."""
        return joint[..., None] * jax.nn.softmax(self.posterior)


def information(together: Float[Array, "states actions levels latents"]) -> Float[Array, ""]:
    """`I(R; z | s, a)` in nats, from the joint probabilities of all four."""
    pair = together.sum((2, 3), keepdims=True)
    ratio = together * pair / jnp.maximum(together.sum(2, keepdims=True) * together.sum(3, keepdims=True), TINY)
    return (together * jnp.log(jnp.where(together > TINY, ratio, 1.0))).sum()


def contrast(
    ratio: Float[Array, "states actions levels latents"],
    marginal: Float[Array, "levels"],
    together: Float[Array, "states actions levels latents"],
) -> Float[Array, ""]:
    """`E f(s, a, R, z) - E log E_{R' ~ marginal} exp f(s, a, R', z)`: at its greatest over `f`, `I(R; z|s, a)` and
    an offset, `E KL(p(R|s, a) || marginal)`, on which `q` has no influence."""  # fmt: skip
    log_mean = jax.nn.logsumexp(ratio + jnp.log(marginal)[:, None], axis=2)
    return (together * (ratio - log_mean[:, :, None])).sum()


class TabularDoCState(eqx.Module):
    """The tables, the density ratio of the contrastive form, and what the log says."""

    tables: Tables
    ratio: Float[Array, "states actions levels latents"]
    tables_opt: optax.OptState
    ratio_opt: optax.OptState
    joint: Joint
    levels: Float[Array, "levels"]


class TabularDoC(Learner):
    """Dichotomy of Control for integer observations and discrete actions, on a log.

    `exact` fits all tables to the frequencies of the log at once, with the information in closed form;
    `contrastive` draws batches and estimates the information by a density ratio that is learned against it.
    """

    mode: str = eqx.field(default="exact", static=True)
    levels: tuple[float, ...] | None = eqx.field(default=None, static=True)  # returns to tell apart; None for the log's
    mi_weight: float = 10.0  # ours; authors' code: 1, which is too little where the return is near chance
    min_mass: float = 0.02  # of a latent that may be chosen; ours
    learning_rate: float = 0.02  # ours; authors' code: 0.01
    batch_size: int = 64

    trains: ClassVar = {"tables": ("exact_loss", "sampled_loss"), "ratio": ("ratio_loss",)}

    def __check_init__(self) -> None:
        require(self.mode in ("exact", "contrastive"), f"mode must be exact or contrastive, but is {self.mode!r}.")
        require(self.mi_weight >= 0, f"mi_weight must be 0 or more, but is {self.mi_weight}.")
        require((self.min_mass >= 0) & (self.min_mass < 1), f"min_mass must be in [0, 1), but is {self.min_mass}.")

    @property
    def window(self) -> int:
        return 1  # for the return that follows each row

    def init(self, spec: Spec, key: PRNGKeyArray) -> TabularDoCState:
        joint, levels = frequencies(spec, self.levels)
        return self.start(jnp.asarray(joint, jnp.float32), jnp.asarray(levels, jnp.float32), key)

    def start(self, joint: Joint, levels: Float[Array, "levels"], key: PRNGKeyArray) -> TabularDoCState:
        """The first state from the frequencies of a log, which sum to 1."""
        tables_key, ratio_key = jax.random.split(key)
        states, actions, values = joint.shape
        tables, adam = Tables.random((states, actions, values), tables_key), optax.adam(self.learning_rate)
        ratio = jax.random.truncated_normal(ratio_key, -2, 2, tables.posterior.shape)
        return TabularDoCState(tables, ratio, adam.init(tables), adam.init(ratio), joint, levels)

    def fit(self, tables: Tables, together: Float[Array, "states actions levels latents"]) -> Float[Array, ""]:
        """`-E log pi(a|s, z) - E log p(R|s, z)`."""
        acting = jnp.einsum("sarz,sza->", together, jax.nn.log_softmax(tables.policy))
        return -acting - jnp.einsum("sarz,szr->", together, jax.nn.log_softmax(tables.value))

    def exact_loss(
        self, tables: Tables, state: TabularDoCState, batch: Any, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The fit, and `beta I(R; z | s, a)`."""
        together = tables.latents(state.joint)
        fit, mi = self.fit(tables, together), information(together)
        return fit + self.mi_weight * mi, {"loss": fit, "information": mi}

    def sampled_loss(
        self, tables: Tables, state: TabularDoCState, batch: Float[Array, "s a r"], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The same with sampled latents, and the contrast in place of the information."""
        together = batch[..., None] * straight_through(key, tables.posterior)
        fit = self.fit(tables, together)
        mi = contrast(state.ratio, _smoothed(state.joint), together)
        return fit + self.mi_weight * mi, {"loss": fit, "information": mi}

    def ratio_loss(
        self, ratio: Array, state: TabularDoCState, batch: Float[Array, "s a r"], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The contrast with its sign turned: the ratio climbs what the posterior descends."""
        together = batch[..., None] * straight_through(key, state.tables.posterior)
        return -contrast(ratio, _smoothed(state.joint), together), {}

    def update(
        self, state: TabularDoCState, batch: Trajectory | None, key: PRNGKeyArray
    ) -> tuple[TabularDoCState, Metrics]:
        """One step; `batch` serves the contrastive form only."""
        adam = optax.adam(self.learning_rate)
        if self.mode == "exact":
            tables, opt, metrics = descend(adam, self.exact_loss, state.tables, state.tables_opt, state, batch, key)
            return eqx.tree_at(lambda s: (s.tables, s.tables_opt), state, (tables, opt)), metrics
        assert batch is not None
        row, r_key = batch.steps, jax.random.fold_in(key, 1)
        level = jnp.abs(batch.to_go[:, :1] - state.levels).argmin(1)
        counts = jnp.zeros_like(state.joint).at[row.obs[:, 0], row.action[:, 0], level].add(1 / len(level))
        tables, opt, metrics = descend(adam, self.sampled_loss, state.tables, state.tables_opt, state, counts, key)
        ratio, r_opt, _ = descend(adam, self.ratio_loss, state.ratio, state.ratio_opt, state, counts, r_key)
        return TabularDoCState(tables, ratio, opt, r_opt, state.joint, state.levels), metrics

    def choice(self, state: TabularDoCState) -> tuple[Int[Array, "states"], Float[Array, "states"]]:
        """In each state the latent that promises the highest expected return, and that return.

        Only latents that the log makes likely are considered: the values of others are what they were at first.
        """
        together = state.tables.latents(state.joint).sum((1, 2))
        prior = together / jnp.maximum(together.sum(1, keepdims=True), TINY)
        expected = jax.nn.softmax(state.tables.value) @ state.levels
        expected = jnp.where(prior >= self.min_mass, expected, -jnp.inf)
        return expected.argmax(1), expected.max(1)

    def logits(self, state: TabularDoCState) -> Float[Array, "states actions"]:
        """Of the actions on the best latent; uniform in states that the log does not show."""
        latent, _ = self.choice(state)
        logits = jnp.take_along_axis(state.tables.policy, latent[:, None, None], 1)[:, 0]
        seen = state.joint.sum((1, 2)) > 0
        return jnp.where(seen[:, None], logits, 0.0)

    def policy(self, state: TabularDoCState) -> Policy:
        return Sampling(Lookup(self.logits(state)))


def _smoothed(joint: Joint) -> Float[Array, "levels"]:
    """How often each return follows, over the whole log; none is impossible, or its log ratio would be infinite."""
    marginal = joint.sum((0, 1)) + 1e-3
    return marginal / marginal.sum()


def frequencies(spec: Spec, levels: tuple[float, ...] | None) -> tuple[np.ndarray, np.ndarray]:
    """How often each state, action and return to go occur together in a log, [states, actions, levels], and the levels.

    Raises:
        SpaceMismatch: unless observations are integers and actions discrete.
        ConfigError: without a log, or if it has too many returns to tell apart.
        DataError: naming a row whose return is not among `levels`.
    """
    spec.require("discrete", "TabularDoC")
    if not spec.tabular:
        raise SpaceMismatch(
            f"TabularDoC looks states up, but the observation space is {spec.observation_space}; use DoC."
        )
    if spec.dataset is None:
        raise ConfigError("TabularDoC counts what a log holds, so it needs one: give data=...")
    to_go = np.asarray(spec.dataset.to_go)
    found = np.unique(to_go) if levels is None else np.sort(np.asarray(levels, np.float32))
    if len(found) > MOST_LEVELS:
        raise ConfigError(
            f"{spec.dataset.name} has {len(found)} different returns to go, more than {MOST_LEVELS}; use DoC."
        )
    level = np.abs(to_go[:, None] - found).argmin(1)
    wrong = np.flatnonzero(np.abs(to_go - found[level]) > 1e-4)
    if len(wrong):
        at = int(wrong[0])
        raise DataError(
            f"{spec.dataset.name}: {to_go[at]:g}, the return to go of row {at}, is none of {levels}; add it."
        )
    counts = np.zeros((spec.obs_size, spec.num_actions, len(found)))
    np.add.at(counts, (np.asarray(spec.dataset.obs), np.asarray(spec.dataset.action), level), 1.0)
    return counts / counts.sum(), found


def conditioned_on_best(joint: Joint) -> Float[Array, "states actions"]:
    """Decision Transformer with a table: `p(a | s, R)` for the highest return in `s`; uniform in unseen states."""
    best = joint.shape[-1] - 1 - jnp.argmax(joint.sum(1)[:, ::-1] > 0, axis=1)
    rows = jnp.take_along_axis(joint, best[:, None, None], 2)[..., 0]
    seen = rows.sum(1, keepdims=True)
    return jnp.where(seen > 0, rows / jnp.maximum(seen, TINY), 1 / joint.shape[1])
