"""What a row of a sequence depends on, and memory that sees what training saw."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError
from habitus.core.spec import Spec
from habitus.nets.encoder import ActionEncoder
from habitus.nets.losses import info_nce, straight_through
from habitus.nets.sequence import ACTION, NUMBER, OBS, SequenceEncoder, Steps
from habitus.nets.transformer import Transformer, dropout

KEY = jax.random.key(0)
SPEC = Spec(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), horizon=9)
NET = SequenceEncoder(SPEC, 8, 2, 2, KEY)
STEPS = Steps(
    jnp.arange(4.0), jax.random.normal(KEY, (4, 3)), jnp.array([0, 1, 1, 0]), jnp.arange(4), jnp.ones(4, bool)
)


def moved(before, after):
    """Which rows differ."""
    return np.asarray(jnp.abs(before - after).reshape(len(before), -1).max(1) > 1e-6).tolist()


def test_a_row_sees_earlier_valid_rows_and_itself():
    net, x = Transformer(8, 2, 2, KEY), jax.random.normal(KEY, (5, 8))
    valid = jnp.array([True, True, False, True, True])
    before = net(x, valid)
    assert moved(before, net(x.at[1, 0].add(1), valid)) == [False, True, True, True, True]
    assert moved(before, net(x.at[2, 0].add(1), valid)) == [False, False, True, False, False]
    assert np.isfinite(net(x, jnp.zeros(5, bool))).all()


def test_dropout_keeps_the_mean_and_does_nothing_without_a_key():
    x = jnp.ones(20_000)
    assert dropout(x, 0.3, None) is x
    found = dropout(x, 0.3, KEY)
    assert float(found.mean()) == pytest.approx(1, abs=0.02)
    assert float((found == 0).mean()) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(("counts", "says"), [((8, 1, 3), "divide"), ((8, 0, 1), "layers"), ((0, 1, 1), "width")])
def test_sizes_are_checked(counts, says):
    with pytest.raises(ConfigError, match=says):
        Transformer(*counts, KEY)


def test_tokens_come_in_the_order_number_observation_action():
    before = NET(STEPS)
    changed = NET(Steps(STEPS.number, STEPS.obs, STEPS.action.at[1].set(0), STEPS.time, STEPS.valid))
    seen = jnp.abs(before - changed).max(-1) > 1e-6
    assert seen.tolist() == [[False] * 3, [False, False, True], [True] * 3, [True] * 3]
    assert (NUMBER, OBS, ACTION) == (0, 1, 2)


def test_the_memory_of_a_policy_shows_what_a_window_shows():
    memory = Steps.blank(SPEC, 6)
    for number, obs, action in zip(STEPS.number, STEPS.obs, STEPS.action, strict=True):
        memory = memory.then(number, obs)
        known = NET(memory)[-1, OBS]
        memory = memory.acted(action)
    np.testing.assert_allclose(known, NET(STEPS)[-1, OBS], atol=1e-5)
    np.testing.assert_allclose(NET(memory)[-4:], NET(STEPS), atol=1e-5)
    for _ in range(6):
        memory = memory.then(jnp.float32(9), STEPS.obs[0])
    assert memory.number.tolist() == [9.0] * 6 and memory.time.tolist() == [4, 5, 6, 7, 8, 9]


def test_actions_as_features():
    several = ActionEncoder.of(Spec(SPEC.observation_space, spaces.MultiDiscrete([2, 3])))
    assert several(jnp.array([1, 0])).tolist() == [0, 1, 1, 0, 0] and several.size == 5
    assert ActionEncoder.of(SPEC)(jnp.array(1)).tolist() == [0, 1]
    real = ActionEncoder.of(Spec(SPEC.observation_space, spaces.Box(-1, 1, (2,))))
    assert real(jnp.array([0.5, -0.5])).tolist() == [0.5, -0.5]


def test_a_draw_passes_the_gradient_of_its_probabilities():
    logits, weights = jnp.array([0.3, -1.0, 0.5]), jnp.array([1.0, 2.0, 4.0])
    drawn = straight_through(KEY, logits)
    np.testing.assert_allclose(np.sort(drawn), [0, 0, 1], atol=1e-6)
    found = jax.grad(lambda x: straight_through(KEY, x) @ weights)(logits)
    np.testing.assert_allclose(found, jax.grad(lambda x: jax.nn.softmax(x) @ weights)(logits), rtol=1e-5)


def test_contrast_within_a_batch():
    scores = jax.random.normal(KEY, (5, 5))
    valid = jnp.array([True, True, True, False, True])
    inner = np.asarray(scores)[np.ix_(valid, valid)]
    known = np.mean(np.diag(inner) - np.log(np.exp(inner).mean(1)))
    assert float(info_nce(scores, valid)) == pytest.approx(known, rel=1e-5)
    assert float(info_nce(scores, jnp.zeros(5, bool))) == 0.0
    assert float(info_nce(20 * jnp.eye(8), jnp.ones(8, bool))) == pytest.approx(np.log(8), rel=1e-3)  # its bound
