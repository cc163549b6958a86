"""Built-in worlds, step by step against Gymnasium's own."""

from __future__ import annotations

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ks_2samp

from habitus.core.errors import ConfigError
from habitus.envs.registry import make
from habitus.envs.worlds.frozen_lake import FrozenLake

STEPS = 1000
# Ours, Gymnasium's, and a box of states wider than what random actions visit.
PAIRS = {
    "pendulum": ("Pendulum-v1", [20.0, 8.0]),
    "cartpole": ("CartPole-v1", [3.0, 4.0, 0.3, 4.0]),
    "mountaincar-continuous": ("MountainCarContinuous-v0", [1.2, 0.07]),
    "acrobot": ("Acrobot-v1", [np.pi, np.pi, 4.0, 4.0]),
}


def play(theirs: gymnasium.Env, wide: list[float] | None, seed: int) -> dict[str, np.ndarray]:
    """Random steps from states that single precision can hold: along episodes, or anywhere in the box `wide`."""
    rng, core = np.random.default_rng(seed), theirs.unwrapped
    theirs.reset(seed=seed)
    theirs.action_space.seed(seed)
    rows: dict[str, list] = {"state": [], "action": [], "obs": [], "reward": [], "terminated": [], "after": []}
    for _ in range(STEPS):
        state = np.float32(core.state if wide is None else rng.uniform(-1, 1, len(wide)) * wide)
        core.state = state.astype(float)
        action = theirs.action_space.sample()
        obs, reward, terminated, _, _ = core.step(action)
        for name, value in zip(rows, (state, action, obs, reward, terminated, core.state), strict=True):
            rows[name].append(np.copy(value))
        if terminated:
            theirs.reset()
    return {name: np.array(values) for name, values in rows.items()}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("anywhere", [False, True])
def test_every_step_agrees(name, anywhere):
    id_, wide = PAIRS[name]
    world, theirs = make(name).env, gymnasium.make(id_)
    rows = play(theirs, wide if anywhere else None, seed=3)
    keys = jax.random.split(jax.random.key(0), STEPS)
    after, step = jax.vmap(world.step)(rows["state"], rows["action"], keys)
    np.testing.assert_allclose(step.obs, rows["obs"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(step.reward, rows["reward"], rtol=1e-5, atol=1e-5)
    # Angles of the acrobot are the same modulo a turn.
    np.testing.assert_allclose(np.exp(1j * after), np.exp(1j * rows["after"].astype(float)), atol=2e-5)
    np.testing.assert_array_equal(step.terminated, rows["terminated"])
    assert not step.truncated.any()
    if anywhere and name != "pendulum":
        assert 0 < rows["terminated"].mean() < 1  # both answers are compared


@pytest.mark.parametrize("name", PAIRS)
def test_spaces_and_limits_agree(name):
    world, theirs = make(name), gymnasium.make(PAIRS[name][0])
    assert world.observation_space == theirs.observation_space
    assert world.action_space == theirs.action_space
    assert world.horizon == theirs.spec.max_episode_steps


@pytest.mark.parametrize("name", PAIRS)
def test_first_observations_have_the_same_distribution(name):
    world, theirs = make(name), gymnasium.make(PAIRS[name][0])
    ours = jax.vmap(lambda key: world.reset(key)[1])(jax.random.split(jax.random.key(1), 1500))
    other = np.array([theirs.reset(seed=seed)[0] for seed in range(1500)])
    for mine, their in zip(np.transpose(ours), other.T, strict=True):
        assert ks_2samp(mine, their).pvalue > 1e-3


LARGE = tuple(row.decode() for row in np.array(gymnasium.make("FrozenLake8x8-v1").unwrapped.desc).view("S8").ravel())


@pytest.mark.parametrize("lake", [FrozenLake().lake, LARGE], ids=["4x4", "8x8"])
@pytest.mark.parametrize("slippery", [True, False])
def test_the_frozen_lake_has_their_probabilities_and_rewards(lake, slippery):
    theirs = gymnasium.make("FrozenLake-v1", desc=list(lake), is_slippery=slippery).unwrapped
    model = FrozenLake(lake, 1 / 3 if slippery else 1.0).model()
    transition, reward = np.zeros_like(model.transition), np.zeros_like(model.reward)
    for state, actions in theirs.P.items():
        for action, outcomes in actions.items():
            for chance, after, paid, _ in outcomes:
                transition[state, action, after] += chance
                reward[state, action] += chance * paid
    np.testing.assert_allclose(model.transition, transition, atol=1e-12)
    np.testing.assert_allclose(model.reward, reward, atol=1e-12)
    np.testing.assert_array_equal(model.start, theirs.initial_state_distrib)


def test_steps_on_the_lake_follow_its_model():
    world = FrozenLake(intended=0.6)
    model, keys = world.model(), jax.random.split(jax.random.key(0), 4000)
    walk = jax.jit(jax.vmap(lambda key, state, action: world.step(state, action, key), (0, None, None)))
    for state, action in ((0, 1), (6, 2), (14, 2), (5, 0), (15, 3)):
        after, step = walk(keys, jnp.asarray(state), jnp.asarray(action))
        seen = np.bincount(after, minlength=16) / len(keys)
        np.testing.assert_allclose(seen, model.transition[state, action], atol=0.03)
        assert float(step.reward.mean()) == pytest.approx(model.reward[state, action], abs=0.03)
        np.testing.assert_array_equal(step.terminated, model.terminal[np.asarray(after)])
    for bad in (("SFF", "FG"), ("FFG",), ("SXG",), ()):
        with pytest.raises(ConfigError, match="rectangle"):
            FrozenLake(bad)
    with pytest.raises(ConfigError, match="probability"):
        FrozenLake(intended=1.5)
