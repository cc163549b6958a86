"""KeyDoor against MiniGrid's DoorKey, step by step."""

from __future__ import annotations

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.envs.registry import make
from habitus.envs.worlds.keydoor import DROP, FORWARD, LOCKED, PICK_UP, TOGGLE, KeyDoor, KeyDoorState


def state_of(env) -> KeyDoorState:
    """MiniGrid's state as ours."""
    found = {}
    for x in range(env.width):
        for y in range(env.height):
            thing = env.grid.get(x, y)
            if thing is not None:
                found[thing.type] = (x, y)
    number = lambda x: jnp.asarray(x, jnp.int32)  # noqa: E731
    return KeyDoorState(
        number(env.agent_pos), number(env.agent_dir), number(found["key"]), jnp.array(False),
        number(found["door"]), number(LOCKED), number(0),
    )  # fmt: skip


@pytest.mark.parametrize("size", [5, 8])
def test_it_steps_and_shows_what_minigrid_does(size):
    pytest.importorskip("minigrid")
    theirs, ours = gymnasium.make(f"MiniGrid-DoorKey-{size}x{size}-v0"), KeyDoor(size)
    step = jax.jit(ours.step)
    rng, seen = np.random.default_rng(0), set()
    for seed in range(12):
        obs, _ = theirs.reset(seed=seed)
        state = state_of(theirs.unwrapped)
        np.testing.assert_array_equal(ours.view(state), obs["image"].ravel())
        for _ in range(150):
            front = theirs.unwrapped.grid.get(*theirs.unwrapped.front_pos)
            kind = front.type if front else "nothing"
            useful = {"key": PICK_UP, "door": TOGGLE, "goal": FORWARD}.get(kind, FORWARD)
            action = useful if rng.random() < 0.5 else int(rng.integers(7))
            obs, reward, terminated, _, _ = theirs.step(action)
            state, after = step(state, jnp.asarray(action), jax.random.key(0))
            np.testing.assert_array_equal(after.obs, obs["image"].ravel(), err_msg=f"seed {seed}, action {action}")
            assert float(after.reward) == pytest.approx(reward, abs=1e-6) and bool(after.terminated) == terminated
            seen.add((kind, action))
            if terminated:
                break
    assert {("key", PICK_UP), ("door", TOGGLE), ("nothing", DROP)} <= seen
    if size == 5:
        assert ("goal", FORWARD) in seen


def test_a_first_state_has_key_and_agent_apart_and_the_goal_behind_the_wall():
    state, _ = jax.vmap(KeyDoor(6).reset)(jax.random.split(jax.random.key(0), 500))
    assert (state.agent != state.key).any(1).all()
    assert (state.agent[:, 0] < state.door[:, 0]).all() and (state.key[:, 0] < state.door[:, 0]).all()
    assert (state.lock == LOCKED).all() and not state.carried.any()
    assert set(np.unique(state.door[:, 0])) == {2, 3} and set(np.unique(state.heading)) == {0, 1, 2, 3}


def test_the_limit_grows_with_the_world():
    assert make("keydoor").horizon == 640 and make("keydoor", size=5).horizon == 250
    with pytest.raises(ConfigError, match="5 or more"):
        make("keydoor", size=4)
