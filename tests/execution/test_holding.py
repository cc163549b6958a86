"""What is done while a reading fails."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from habitus.core.protocols import Policy
from habitus.execution.holding import Holding

NAN, INF = jnp.nan, jnp.inf


class Adding(Policy):
    """Acts by the sum of the readings and the number of steps before, and remembers what it earned."""

    def init(self):
        return jnp.zeros(2)

    def rewarded(self, carry, reward):
        return carry.at[1].add(reward)

    def report(self, carry):
        return {"earned": carry[1]}

    def __call__(self, obs, carry, key):
        return (obs.sum() + carry[0])[None], carry.at[0].add(1)


def test_the_last_action_is_repeated_and_the_policy_inside_goes_on_with_the_last_reading():
    policy = Holding(Adding(), obs_size=2, action_shape=(1,))
    rows = jnp.asarray([[NAN, 1.0], [10.0, 1.0], [10.0, 2.0], [NAN, 5.0], [20.0, INF], [20.0, 0.0]])

    def one(carry, obs):
        action, carry = policy(obs, carry, jax.random.key(0))
        return policy.rewarded(carry, jnp.ones(())), (action[0], carry.obs)

    carry, (actions, shown) = jax.jit(lambda: jax.lax.scan(one, policy.init(), rows))()
    assert actions.tolist() == [0, 12, 14, 14, 14, 25]
    np.testing.assert_array_equal(shown[:, 0], [0, 10, 10, 10, 20, 20])
    assert {k: float(v) for k, v in policy.report(carry).items()} == {"earned": 6.0, "held": 3.0}
