"""Off-policy evaluation: what a policy would earn, from a log of another one, without acting.

Four estimators that fail in different ways, so that their agreement means something: fitted Q
evaluation (wrong where its function class is), weighted importance sampling (noisy where the policies
differ), roll-outs in a learned world (wrong where the model is), and the doubly robust one, which is
right if either values or ratios are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.stats import t as student

from habitus.core.errors import ConfigError, HabitusError
from habitus.core.policy import Deployed
from habitus.core.protocols import Policy, require
from habitus.data.dataset import Dataset
from habitus.measure.fitting import Behaviour, FittedQ, clone_behaviour, fit_q
from habitus.measure.statistics import Interval, interval_of
from habitus.nets.distributions import Categorical, Distribution
from habitus.nets.policies import Greedy, Mode, Normalised, Sampling
from habitus.train.collect import run_episodes
from habitus.train.world_model import LearnedWorld, fit_world


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one estimator says.

    Attributes:
        name: of the estimator.
        value: discounted return from the log's first states, with its interval.
        effective: effective sample size in episodes, where episodes are weighted.
    """

    name: str
    value: Interval
    effective: float | None = None

    def __str__(self) -> str:
        size = "" if self.effective is None else f"  (effective sample {self.effective:.3g} episodes)"
        return f"{self.value}{size}"


def evaluate_offline(
    policy: Policy,
    log: Dataset,
    *,
    discount: float = 0.99,
    updates: int = 10_000,
    hidden: Sequence[int] = (256, 256),
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate | str]:
    """Every estimator that fits the policy and the log, and a sentence for each that does not.

    Args:
        policy: in canonical spaces, or `Deployed` in those of the log.
        discount: of later rewards; the estimates are discounted returns.
        updates: for fitting values, the behaviour policy and the dynamics, each.
        level: of the intervals.

    Returns:
        by name: 'log' (what the logged policy earned), 'fqe', 'wis', 'doubly robust', 'model'.

    Raises:
        ConfigError: if a number is out of its domain.
        SpaceMismatch: if the policy acts in other spaces than the log's.
    """
    require((0 <= discount) & (discount <= 1), f"discount must be in [0, 1], but is {discount}.")
    if isinstance(policy, Deployed):
        policy.spec.check_same(log.spec, log.name)
        policy = policy.policy
    key = jax.random.key(seed)
    q = fit_q(policy, log, discount, updates, tuple(hidden), key)
    episodes = Episodes.of(log, discount)
    out: dict[str, Estimate | str] = {"log": Estimate("log", episodes.bootstrap(logged_return, level))}
    out["fqe"] = fitted_q_evaluation(q, level)

    def weighted() -> tuple[Estimate, Estimate]:
        target = distribution_of(policy)
        behaviour = clone_behaviour(log, updates, tuple(hidden), key)
        known = episodes.weighted(log, target, behaviour).valued(log, q)
        return weighted_importance_sampling(known, level), doubly_robust(known, level)

    for names, run in (
        (("wis", "doubly robust"), weighted),
        (("model",), lambda: (_model(policy, log, discount, updates, level, key),)),
    ):
        try:
            out |= dict(zip(names, run(), strict=True))
        except HabitusError as error:
            out |= dict.fromkeys(names, str(error))
    return out


@dataclasses.dataclass(frozen=True)
class Episodes:
    """A log as padded episodes.

    Attributes:
        rows: for each step its row in the log, int [episodes, time]; `valid` is False beyond an episode's end.
        reward: [episodes, time], 0 there.
        discount: of later rewards.
        log_ratio: `log pi(a|s) / b(a|s)` of each step, 0 beyond the end; None until `weighted`.
        q, v: `Q(s, a)` and `E Q(s, pi(s))` of each step, 0 beyond the end; None until `valued`.
    """

    rows: np.ndarray
    valid: Bool[np.ndarray, "episodes time"]
    reward: Float[np.ndarray, "episodes time"]
    discount: float
    log_ratio: np.ndarray | None = None
    q: np.ndarray | None = None
    v: np.ndarray | None = None

    @classmethod
    def of(cls, log: Dataset, discount: float) -> Episodes:
        """All episodes of a log, complete or not."""
        time = np.arange(int(log.lengths.max()))
        valid = time < log.lengths[:, None]
        rows = np.minimum(log.starts[:, None] + time, log.ends[:, None])
        return cls(rows, valid, np.where(valid, np.asarray(log.reward, np.float64)[rows], 0.0), discount)

    def weighted(self, log: Dataset, target: Callable[[Array], Distribution], behaviour: Behaviour) -> Episodes:
        """With the ratio of each step."""
        data = log.canonical()
        obs, action = jnp.asarray(np.asarray(data.obs)), jnp.asarray(np.asarray(data.action))
        ratio = jax.jit(jax.vmap(lambda o, a: target(o).log_prob(a) - behaviour(o).log_prob(a)))(obs, action)
        return dataclasses.replace(self, log_ratio=np.where(self.valid, np.asarray(ratio, np.float64)[self.rows], 0.0))

    def valued(self, log: Dataset, q: FittedQ) -> Episodes:
        """With the values of each step."""
        pairs, states = q.values(log)
        return dataclasses.replace(
            self, q=np.where(self.valid, pairs[self.rows], 0.0), v=np.where(self.valid, states[self.rows], 0.0)
        )

    @property
    def powers(self) -> np.ndarray:
        """`discount^t`, [time]."""
        return self.discount ** np.arange(self.reward.shape[1])

    def bootstrap(self, statistic: Callable[[Episodes], float], level: float, resamples: int = 500) -> Interval:
        """A statistic with its interval, episodes resampled whole."""
        n, rng = len(self.rows), np.random.default_rng(0)

        def chosen(index: np.ndarray) -> Episodes:
            parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
            return Episodes(**{k: x[index] if isinstance(x, np.ndarray) else x for k, x in parts.items()})

        drawn = np.array([statistic(chosen(rng.integers(0, n, n))) for _ in range(resamples)])
        return interval_of(statistic(self), drawn, [np.zeros(n)], level)


def logged_return(episodes: Episodes) -> float:
    """Mean discounted return of the log itself."""
    return float((episodes.reward * episodes.powers).sum(1).mean())


def weighted_importance_sampling(
    episodes: Episodes, level: float = 0.95, bounds: tuple[float, float] | None = None
) -> Estimate:
    """`sum_i w_i G_i / sum_i w_i`, `w_i` the product of an episode's ratios (Precup et al. 2000).

    Args:
        bounds: that each `w_i` is clipped to: less noise for some bias.
    """
    if bounds is not None:
        low, high = bounds
        require(0 < low <= high, f"bounds of a weight must be above 0 and in order, but are {bounds}.")

    def weights(e: Episodes) -> np.ndarray:
        log_weight = _log_ratio(e).sum(1)
        return _share(log_weight if bounds is None else np.clip(log_weight, *np.log(bounds)))

    def statistic(e: Episodes) -> float:
        return float(weights(e) @ (e.reward * e.powers).sum(1))

    share = weights(episodes)
    return Estimate("wis", episodes.bootstrap(statistic, level), float(1 / (share**2).sum()))


def doubly_robust(episodes: Episodes, level: float = 0.95) -> Estimate:
    """Weighted doubly robust: `sum_t gamma^t sum_i w_it (r_it - Q_it) + w_i(t-1) V_it` (Thomas and Brunskill 2016)."""

    def statistic(e: Episodes) -> float:
        if e.q is None or e.v is None:
            raise ConfigError("the doubly robust estimator needs values; call valued() first.")
        weight = _share(np.cumsum(_log_ratio(e), 1))
        before = np.concatenate([np.full((len(weight), 1), 1 / len(weight)), weight[:, :-1]], axis=1)
        return float(((weight * (e.reward - e.q) + before * e.v).sum(0) * e.powers).sum())

    share = _share(_log_ratio(episodes).sum(1))
    return Estimate("doubly robust", episodes.bootstrap(statistic, level), float(1 / (share**2).sum()))


def fitted_q_evaluation(q: FittedQ, level: float = 0.95) -> Estimate:
    """`E Q(s_0, pi(s_0))` of values fitted to several resamples of the episodes (Le et al. 2019; Hao et al. 2021)."""
    return Estimate("fqe", _spread(q.starts, level))


def _model(policy: Policy, log: Dataset, discount: float, updates: int, level: float, key: Array) -> Estimate:
    """Roll-outs in each member of a learned ensemble."""
    world, _ = fit_world(log, key, members=5, elites=5, steps=updates)
    values = [
        run_episodes(policy, _one_member(world, member), 100, seed=1, discount=discount).discounted.mean()
        for member in range(5)
    ]
    return Estimate("model", _spread(np.asarray(values), level))


def _one_member(world: LearnedWorld, member: int) -> LearnedWorld:
    """The world of one member."""
    return dataclasses.replace(world, elites=jnp.asarray([member]))


def distribution_of(policy: Policy) -> Callable[[Array], Distribution]:
    """The action distribution of a policy for one observation.

    Raises:
        ConfigError: if it has none: importance sampling needs probabilities.
    """
    if isinstance(policy, Normalised):
        inner = distribution_of(policy.policy)
        return lambda obs: inner(policy.normaliser(obs))
    if isinstance(policy, Sampling):
        return policy.actor
    if isinstance(policy, Mode):

        def mode(obs: Array) -> Categorical:
            dist = policy.actor(obs)
            if not isinstance(dist, Categorical):
                raise ConfigError("a policy that takes one real action has no density; evaluate one that samples.")
            return Categorical(jnp.log(jax.nn.one_hot(dist.mode(), len(dist.logits)) + 1e-12))

        return mode
    if isinstance(policy, Greedy):

        def greedy(obs: Array) -> Categorical:
            values = policy.critic(obs)
            best = jax.nn.one_hot(jnp.argmax(values), len(values))
            return Categorical(jnp.log((1 - policy.epsilon) * best + policy.epsilon / len(values) + 1e-12))

        return greedy
    raise ConfigError(
        f"a {type(policy).__name__} policy has no action probabilities, so logged actions cannot be weighted."
    )


def _log_ratio(episodes: Episodes) -> np.ndarray:
    if episodes.log_ratio is None:
        raise ConfigError("importance sampling needs the ratio of every step; call weighted() first.")
    return episodes.log_ratio


def _share(log_weight: np.ndarray) -> np.ndarray:
    """Weights over episodes (axis 0) that sum to 1."""
    weight = np.exp(log_weight - log_weight.max(0))
    return np.asarray(weight / weight.sum(0))


def _spread(values: np.ndarray, level: float) -> Interval:
    """The mean of a few resampled estimates, and Student's interval for another such estimate."""
    n, mean = len(values), float(values.mean())
    half = float(student.ppf(0.5 + level / 2, n - 1) * values.std(ddof=1) * np.sqrt(1 + 1 / n))
    return Interval(mean, mean - half, mean + half, level)
