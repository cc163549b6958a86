"""From a log to a world with one argument, and without a fall at the switch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from habitus.data.scores import normalised_score
from habitus.methods.offline.famo2o import FamO2O
from habitus.methods.offline.iql import IQL
from habitus.methods.offline.td3bc import TD3BC
from habitus.methods.offline.uni_o4 import UniO4
from habitus.methods.online.uni_o4_online import UniO4Online
from habitus.train.loop import learn
from habitus.train.standard import make_offline

SIZE: dict[str, Any] = dict(hidden=(64, 64), learning_rate=1e-3)
GATE: dict[str, Any] = dict(
    dynamics_hidden=(32, 32), models=3, elites=2, gate_starts=64, gate_horizon=20, clone_share=0.4
)
REPLAY: dict[str, Any] = dict(mix="proportional", source_options={"warmup": 200, "capacity": 2_000})
PAIRS = {
    "td3bc": (TD3BC(**SIZE), None, REPLAY),
    "iql": (IQL(**SIZE), None, REPLAY),
    "famo2o": (FamO2O(**SIZE), None, REPLAY),
    "uni-o4": (UniO4(**SIZE, **GATE), UniO4Online(hidden=(64, 64), num_envs=4, rollout_length=100), {}),
}


@pytest.mark.parametrize("slug", PAIRS)
def test_returns_do_not_fall_as_a_run_goes_on_in_the_world(slug):
    learner, online, options = PAIRS[slug]
    log = make_offline("pendulum", "medium")
    before = learn(learner, log, 4_000, seeds=1, evaluations=1, episodes=20, points=2)
    data = {} if online else {"data": log}
    after = learn(
        online or learner, env="pendulum", steps=1_200, seeds=1, evaluations=[400, 1_200], episodes=20, points=2,
        warm_start=before, **data, **options,
    )  # fmt: skip
    offline, switched, last = (normalised_score(log, x) for x in (before.returns[-1], *after.returns))
    assert offline.mean() > 0.5 * normalised_score(log, log.returns).mean(), "nothing was learned that could be lost"
    assert np.mean(switched) >= 0.9 * np.mean(offline) and np.mean(last) >= 0.9 * np.mean(offline)
