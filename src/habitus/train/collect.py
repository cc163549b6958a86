"""Acting in worlds: steps for the sources, whole episodes for evaluation."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from habitus.core.experience import Step, Trajectory, Transition
from habitus.core.protocols import Env, HostEnv, Policy
from habitus.core.trees import Metrics
from habitus.envs.stepping import step_and_reset
from habitus.train.host import Actor


class EpisodeTally(eqx.Module):
    """Running return and length of each copy, and sums over the episodes finished since the last report.

    `total_cost` and `steps` are over all steps since then, where the world reports costs.
    """

    ret: Float[Array, "envs"]
    length: Int[Array, "envs"]
    total_return: Float[Array, ""]
    total_length: Float[Array, ""]
    finished: Float[Array, ""]
    total_cost: Float[Array, "costs"] | None
    steps: Float[Array, ""] | None
    costs: tuple[str, ...] = eqx.field(static=True, default=())

    @classmethod
    def start(cls, num_envs: int, costs: tuple[str, ...] = ()) -> EpisodeTally:
        """Nothing finished yet."""
        zero = jnp.zeros(())
        spent, steps = (jnp.zeros(len(costs)), zero) if costs else (None, None)
        return cls(jnp.zeros(num_envs), jnp.zeros(num_envs, jnp.int32), zero, zero, zero, spent, steps, costs)

    def add(
        self,
        reward: Float[Array, "time envs"],
        done: Bool[Array, "time envs"],
        cost: Float[Array, "time envs costs"] | None = None,
    ) -> EpisodeTally:
        """The tally after a block of steps."""
        if self.total_cost is not None and self.steps is not None and cost is not None:
            spent = self.total_cost + cost.sum((0, 1)), self.steps + reward.size
            return eqx.tree_at(lambda t: (t.total_cost, t.steps), self._add(reward, done), spent)
        return self._add(reward, done)

    def _add(self, reward: Float[Array, "time envs"], done: Bool[Array, "time envs"]) -> EpisodeTally:

        def one(tally: EpisodeTally, row: tuple[Array, Array]) -> tuple[EpisodeTally, None]:
            r, d = row
            ret, length = tally.ret + r, tally.length + 1
            return EpisodeTally(
                jnp.where(d, 0.0, ret),
                jnp.where(d, 0, length),
                tally.total_return + jnp.where(d, ret, 0.0).sum(),
                tally.total_length + jnp.where(d, length, 0).sum(),
                tally.finished + d.sum(),
                self.total_cost,
                self.steps,
                self.costs,
            ), None

        return jax.lax.scan(one, self, (reward, done))[0]

    def forget(self) -> EpisodeTally:
        """The tally without the episodes that are under way, as they are given up."""
        return eqx.tree_at(lambda t: (t.ret, t.length), self, (jnp.zeros_like(self.ret), jnp.zeros_like(self.length)))

    def report(self) -> tuple[EpisodeTally, Metrics]:
        """Mean return and length of the episodes finished since the last report, and each mean cost of a step.

        The count then starts anew.
        """
        zero = jnp.zeros(())
        n = jnp.maximum(self.finished, 1.0)
        metrics = {
            "episode/return": jnp.where(self.finished > 0, self.total_return / n, jnp.nan),
            "episode/length": jnp.where(self.finished > 0, self.total_length / n, jnp.nan),
            "episode/finished": self.finished,
        }
        if self.total_cost is not None and self.steps is not None:
            metrics |= cost_metrics(self.costs, self.total_cost / jnp.maximum(self.steps, 1.0))
        spent, steps = (jnp.zeros(len(self.costs)), zero) if self.costs else (None, None)
        fresh = EpisodeTally(self.ret, self.length, zero, zero, zero, spent, steps, self.costs)
        return fresh, metrics


def cost_metrics(costs: tuple[str, ...], means: Any) -> Metrics:
    """Mean costs of a step [costs] as metrics."""
    return {f"cost/{name}": jnp.asarray(means[i]) for i, name in enumerate(costs)}


class Collection(eqx.Module):
    """Where the copies of a compiled world stand between two blocks of steps."""

    env_state: Any
    obs: Any
    carry: Any
    tally: EpisodeTally


def start(env: Env, num_envs: int, explorer: Policy, key: PRNGKeyArray) -> Collection:
    """`num_envs` fresh episodes."""
    env_state, obs = jax.vmap(env.reset)(jax.random.split(key, num_envs))
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_envs, *jnp.shape(x))), explorer.init())
    return Collection(env_state, obs, carry, EpisodeTally.start(num_envs, env.costs))


def collect(
    env: Env, state: Collection, explorer: Policy, key: PRNGKeyArray, length: int, once: bool = False
) -> tuple[Collection, Transition]:
    """`length` steps of every copy: transitions [length, num_envs, ...]. Carries restart with episodes.

    Args:
        once: count only the first episode of each copy, so that short ones are not favoured.
    """
    num_envs = state.tally.ret.shape[0]
    fresh = explorer.init()

    def one(at: tuple[Any, Any, Any], keys: Key[Array, "2 envs"]) -> tuple[tuple[Any, Any, Any], Transition]:
        env_state, obs, carry = at
        action, carry = jax.vmap(explorer)(obs, carry, keys[0])
        env_state, step, first = jax.vmap(lambda s, a, k: step_and_reset(env, s, a, k))(env_state, action, keys[1])
        done, carry = step.terminated | step.truncated, jax.vmap(explorer.rewarded)(carry, step.reward)
        carry = jax.vmap(lambda d, c: jax.tree.map(lambda new, old: jnp.where(d, new, old), fresh, c))(done, carry)
        cost = step.info["cost"] if env.costs else None
        row = Transition(obs, action, step.reward, step.terminated, step.truncated, step.obs, cost)
        return (env_state, first, carry), row

    keys = jax.random.split(key, (length, 2, num_envs))
    at, rollout = jax.lax.scan(one, (state.env_state, state.obs, state.carry), keys)
    ends = rollout.done & (jnp.cumsum(rollout.done, 0) == 1) if once else rollout.done
    return Collection(*at, state.tally.add(rollout.reward, ends, rollout.cost)), rollout


def whole_episodes(env: Env, explorer: Policy, num_envs: int, horizon: int, key: PRNGKeyArray) -> Trajectory:
    """One episode of each of `num_envs` copies of a compiled world, [num_envs, horizon]; both in the same spaces."""
    start_key, key = jax.random.split(key)
    return Trajectory.of_rollout(collect(env, start(env, num_envs, explorer, start_key), explorer, key, horizon)[1])


class HostCollector:
    """Steps a world that runs in Python, with the policy compiled.

    The action for the next step is computed before the step is asked for, so that the step itself
    runs in Python while a compiled update that was dispatched meanwhile is still computing.
    """

    def __init__(self, env: HostEnv, explorer: Actor, seed: int):
        self.env, self.tick = env, 0
        self.obs = env.reset(seed)
        self.key = jax.random.key(seed)
        fresh = jax.tree.map(np.asarray, explorer.init())
        self.fresh = jax.tree.map(lambda x: np.broadcast_to(x, (env.num_envs, *x.shape)).copy(), fresh)
        self.carry = self.fresh
        self.pending: np.ndarray | None = None
        self.returns, self.lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, int)
        self.finished: list[tuple[float, int]] = []
        self.counted: np.ndarray | None = None  # copies that finished since `restart`, and count once
        self.spent, self.steps = np.zeros(len(env.costs)), 0
        self.success: np.ndarray | None = None  # what the last step said of it, if anything

    def restart(self, seed: int) -> None:
        """Fresh episodes, of which the first of each copy counts; those under way are given up."""
        self.obs, self.carry, self.pending = self.env.reset(seed), self.fresh, None
        self.returns, self.lengths = np.zeros(self.env.num_envs), np.zeros(self.env.num_envs, int)
        self.counted = np.zeros(self.env.num_envs, bool)

    def plan(self, explorer: Actor) -> None:
        """Chooses the next actions; waits for the explorer's parameters."""
        self.pending, self.carry = explorer(self.obs, self.carry, self.key, self.tick)
        self.tick += 1

    def step(self, explorer: Actor) -> Transition:
        """Takes the planned actions and plans none: one transition a copy, as NumPy arrays."""
        if self.pending is None:
            self.plan(explorer)
        obs, action = self.obs, self.pending
        step, self.obs = self.env.step(action)
        self.pending, self.success = None, step.info.get("success")
        done = step.terminated | step.truncated
        self.carry = explorer.rewarded(self.carry, step.reward)
        self.returns += step.reward
        self.lengths += 1
        cost = step.info["cost"] if self.env.costs else None
        if cost is not None:
            self.spent, self.steps = self.spent + cost.sum(0), self.steps + len(cost)
        if done.any():
            counts = done if self.counted is None else done & ~self.counted
            self.finished += list(zip(self.returns[counts].tolist(), self.lengths[counts].tolist(), strict=True))
            self.counted = None if self.counted is None else self.counted | done
            self.returns[done], self.lengths[done] = 0.0, 0
            if jax.tree.leaves(self.carry):
                self.carry = jax.tree.map(
                    lambda new, old: np.where(done.reshape(-1, *[1] * (new.ndim - 1)), new, old), self.fresh, self.carry
                )
        return Transition(obs, action, step.reward, step.terminated, step.truncated, step.obs, cost)

    def report(self) -> Metrics:
        """As `EpisodeTally.report`."""
        n = len(self.finished)
        returns, lengths = zip(*self.finished, strict=True) if n else ([np.nan], [np.nan])
        means = self.spent / max(self.steps, 1)
        self.finished, self.spent, self.steps = [], np.zeros_like(self.spent), 0
        return {
            "episode/return": jnp.asarray(np.mean(returns)),
            "episode/length": jnp.asarray(np.mean(lengths)),
            "episode/finished": jnp.asarray(float(n)),
        } | cost_metrics(self.env.costs, means)


class Episodes(NamedTuple):
    """Whole episodes: undiscounted and discounted returns, lengths in steps, success where the world
    reports it, the seed that repeats each of them, and sums of costs [episodes, costs] where it reports those."""

    returns: np.ndarray
    discounted: np.ndarray
    lengths: np.ndarray
    success: np.ndarray | None
    seeds: np.ndarray
    costs: np.ndarray | None = None


def run_episodes(policy: Policy, env: Env | HostEnv, episodes: int, seed: int = 0, discount: float = 1.0) -> Episodes:
    """Runs whole episodes from fresh starts; the world and the policy are in the same spaces.

    In a compiled world the i-th episode depends on `seed + i` alone. A world that runs in Python is
    reset with a new seed for each round of its copies. An episode in a world without a horizon ends
    when it terminates.
    """
    if isinstance(env, HostEnv):
        return _host_episodes(policy, env, episodes, seed, discount)
    seeds = np.arange(seed, seed + episodes, dtype=np.uint32)
    *figures, success, known, spent = _pure_episodes(policy, env, seeds, jnp.float32(discount))
    returns, discounted, lengths = map(np.asarray, figures)
    costs = np.asarray(spent) if env.costs else None
    return Episodes(returns, discounted, lengths, np.asarray(success) if known else None, seeds, costs)


@eqx.filter_jit
def _pure_episodes(policy: Policy, env: Env, seeds: Any, discount: Array) -> tuple[Any, ...]:
    n = seeds.shape[0]
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    env_state, obs = jax.vmap(env.reset)(keys)
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *jnp.shape(x))), policy.init())

    def advance(env_state: Any, obs: Any, carry: Any, tick: Array) -> tuple[Any, Step, Any]:
        own = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, tick)))(keys)
        action, carry = jax.vmap(policy)(obs, carry, own[:, 0])
        env_state, step = jax.vmap(env.step)(env_state, action, own[:, 1])
        return env_state, step, jax.vmap(policy.rewarded)(carry, step.reward)

    known = "success" in jax.eval_shape(advance, env_state, obs, carry, jnp.uint32(0))[1].info

    def one(at: tuple[Any, ...]) -> tuple[Any, ...]:
        env_state, obs, carry, over, ret, discounted, length, success, spent, tick = at
        env_state, step, carry = advance(env_state, obs, carry, tick)
        reward = jnp.where(over, 0.0, step.reward)
        discounted = discounted + discount**length * reward
        length = length + jnp.where(over, 0, 1)
        if known:
            success = success | (~over & step.info["success"].astype(bool))
        if env.costs:
            spent = spent + jnp.where(over[:, None], 0.0, step.info["cost"])
        over = over | step.terminated | step.truncated
        return env_state, step.obs, carry, over, ret + reward, discounted, length, success, spent, tick + 1

    no, zero = jnp.zeros(n, bool), jnp.zeros(n)
    first = (
        env_state,
        obs,
        carry,
        no,
        zero,
        zero,
        jnp.zeros(n, jnp.int32),
        no,
        jnp.zeros((n, len(env.costs))),
        jnp.uint32(1),
    )
    end = jax.lax.while_loop(lambda at: ~at[3].all(), one, first)
    return end[4], end[5], end[6], end[7], known, end[8]


def _host_episodes(policy: Policy, env: HostEnv, episodes: int, seed: int, discount: float) -> Episodes:
    """Rounds of one episode a copy, each to its end, so that short episodes are not favoured."""
    parts, actor = [], Actor.of(policy)
    for start_seed in range(seed, seed + episodes, env.num_envs):
        collector = HostCollector(env, actor, start_seed)
        over, won, known = np.zeros(env.num_envs, bool), np.zeros(env.num_envs, bool), True
        returns, discounted, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs), np.zeros(env.num_envs, int)
        spent = np.zeros((env.num_envs, len(env.costs)))
        while not over.all():
            step = collector.step(actor)
            reward = np.where(over, 0.0, step.reward)
            returns += reward
            discounted += discount**lengths * reward
            lengths += ~over
            if step.cost is not None:
                spent += np.where(over[:, None], 0.0, step.cost)
            known &= collector.success is not None
            won |= ~over & (collector.success if collector.success is not None else False)
            over |= step.terminated | step.truncated
        seeds = np.full(env.num_envs, start_seed)
        costs = spent if env.costs else None
        parts.append(Episodes(returns, discounted, lengths, won if known else None, seeds, costs))
    columns = [None if column[0] is None else np.concatenate(column)[:episodes] for column in zip(*parts, strict=True)]
    return Episodes(*columns)  # type: ignore[arg-type]
