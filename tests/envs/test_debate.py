"""The debate as a game: who moves, what is seen, who is paid, and when it ends."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.core.spec import Spec
from habitus.envs.registry import canonical
from habitus.envs.worlds.debate import Debate, other_action
from habitus.nets.heads import StochasticActor

N, ACTIONS = 7, 3
STATES = jax.random.normal(jax.random.key(0), (20, N))
WEIGHTS = jax.random.normal(jax.random.key(1), (ACTIONS, N))


def judge(features, revealed, action):
    return WEIGHTS[action] @ (features * revealed)


def game(evidence=4, alone=False, by=judge):
    return Debate(by, STATES, jnp.arange(20) % ACTIONS, ACTIONS, evidence, alone)


def played(world, seeds=64):
    """Whole games of players that choose at random from what the mask allows: steps, and states, [games, moves]."""
    env = canonical(world)
    spec = Spec(env.env.observation_space, env.env.action_space)
    actor = StochasticActor(spec, (8,), jax.random.key(2), final_gain=0.01)

    def one(key):
        state, obs = env.reset(key)

        def move(at, key):
            state, obs = at
            act, go = jax.random.split(key)
            action = actor(obs).sample(act)
            after, step = env.step(state, action, go)
            return (after, step.obs), (step.reward, step.terminated, action, state, after)

        return jax.lax.scan(move, (state, obs), jax.random.split(key, world.evidence))[1]

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), seeds))


def test_no_feature_is_revealed_twice_and_a_game_is_as_long_as_its_evidence():
    _, over, feature, _, after = played(game())
    assert all(len(set(row)) == 4 for row in np.asarray(feature).tolist())
    np.testing.assert_array_equal(np.asarray(over), np.tile([False, False, False, True], (64, 1)))
    np.testing.assert_array_equal(after.revealed[:, -1].sum(-1), 4)


def test_players_alternate_and_either_may_start():
    *_, before, _ = played(game())
    player = np.asarray((before.starter + before.time) % 2)
    assert (player[:, 1:] != player[:, :-1]).all() and set(player[:, 0]) == {0, 1}
    assert (np.asarray(before.actions[:, 0, 0]) != np.asarray(before.actions[:, 0, 1])).all()


def test_only_the_end_pays_and_what_one_wins_the_other_loses():
    reward, _, _, _, after = played(game())
    assert not np.asarray(reward)[:, :-1].any() and set(np.asarray(reward)[:, -1].tolist()) == {-1.0, 1.0}
    swap = jax.vmap(lambda f, a, r, s, t: game().margin(type(after)(f, a[::-1], r, s, t)))
    last = jax.tree.map(lambda x: x[:, -1], after)
    theirs = jnp.sign(swap(last.features, last.actions, last.revealed, last.starter, last.time))
    np.testing.assert_array_equal(theirs, -np.asarray(reward)[:, -1])


def test_a_tie_pays_nothing():
    reward, *_ = played(game(by=lambda features, revealed, action: revealed.sum()), seeds=8)
    assert not np.asarray(reward).any()


def test_with_every_feature_revealed_the_players_do_not_matter():
    reward, _, _, _, after = played(game(evidence=N, alone=True))
    features, actions = after.features[:, 0], after.actions[:, 0]
    everything = jax.vmap(lambda f, a: judge(f, jnp.ones(N), a[0]) - judge(f, jnp.ones(N), a[1]))(features, actions)
    np.testing.assert_array_equal(reward[:, -1], jnp.sign(everything))


def test_the_other_action_is_never_the_same_and_uniform():
    drawn = other_action(jax.random.key(0), jnp.full(6000, 1), 4)
    share = np.bincount(np.asarray(drawn), minlength=4) / 6000
    np.testing.assert_allclose(share, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.03)


@pytest.mark.parametrize("bad", [{"evidence": 3}, {"evidence": 8}, {"evidence": 0, "alone": True}])
def test_evidence_that_cannot_be_shared_out_is_refused(bad):
    with pytest.raises(ConfigError, match="evidence must be"):
        game(**bad)
