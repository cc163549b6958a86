"""Writing down what a policy does, as a data set."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from habitus.core.errors import ConfigError
from habitus.core.experience import Transition
from habitus.core.protocols import Env, Policy
from habitus.data.dataset import Dataset
from habitus.train.collect import collect, start


def record_log(policy: Policy, env: Env, episodes: int, seed: int = 0, meta: dict[str, Any] | None = None) -> Dataset:
    """Whole episodes of a policy in a compiled world, both in the same spaces; the last step of each closes it.

    Episodes that terminate early are followed by others in the same row of time, so the log holds
    `episodes * env.horizon` transitions and at least so many episodes.

    Raises:
        ConfigError: if the world has no horizon.
    """
    if env.horizon is None:
        raise ConfigError(
            "a log is recorded up to the horizon of its world, and this one has none; wrap it in TimeLimit."
        )
    rows = _record(policy, env, episodes, jax.random.key(seed))
    columns: dict[str, Any] = {
        name: jax.tree.map(lambda x: np.array(np.swapaxes(x, 0, 1)).reshape(-1, *x.shape[2:]), column)
        for name, column in rows.columns.items()
    }
    last = np.arange(1, episodes + 1) * env.horizon - 1
    columns["truncated"][last] |= ~columns["terminated"][last]
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    named = {name: list(getattr(env, name)) for name in ("costs", "switches") if getattr(env, name)}
    return Dataset.from_arrays(**columns, **spaces, meta=named | (meta or {}), validate=False)


@eqx.filter_jit
def _record(policy: Policy, env: Env, episodes: int, key: PRNGKeyArray) -> Transition:
    assert env.horizon is not None
    start_key, act_key = jax.random.split(key)
    return collect(env, start(env, episodes, policy, start_key), policy, act_key, env.horizon)[1]
