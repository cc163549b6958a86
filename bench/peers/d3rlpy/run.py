"""d3rlpy's side: `run.py WORK` prints one line of JSON."""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from side import ENV_STEPS, OFF_POLICY, UPDATES, Rate, main, random_log, scaled, timed

MEASURED_UPDATES = 1_000
WARM_UP = 50


def _learner(algorithm: str) -> Any:
    """The algorithm with two hidden layers of 256 in every network."""
    import d3rlpy
    from d3rlpy.models import VectorEncoderFactory

    make = getattr(d3rlpy.algos, f"{algorithm}Config")
    roles = ("actor", "critic", "value") if algorithm == "IQL" else ("actor", "critic")
    return make(
        batch_size=OFF_POLICY.batch,
        gamma=OFF_POLICY.discount,
        tau=OFF_POLICY.tau,
        actor_learning_rate=OFF_POLICY.learning_rate,
        critic_learning_rate=OFF_POLICY.learning_rate,
        **{f"{role}_encoder_factory": VectorEncoderFactory(list(OFF_POLICY.hidden)) for role in roles},
    ).create(device="cpu:0")


def _offline(algorithm: str, args: argparse.Namespace) -> Rate:
    """Updates from a log of random transitions; building the networks and 50 updates are not measured."""
    import d3rlpy

    log = random_log()
    data = d3rlpy.dataset.MDPDataset(
        log["obs"], log["action"], log["reward"], terminals=log["ends"] * 0, timeouts=log["ends"] * 1
    )
    learner = _learner(algorithm)

    def fit(updates: int) -> None:
        learner.fit(
            data,
            n_steps=updates,
            n_steps_per_epoch=updates,
            show_progress=False,
            logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        )

    fit(WARM_UP)
    updates = scaled(MEASURED_UPDATES, args)
    return timed(updates, UPDATES, lambda: fit(updates))


def sac_hopper(args: argparse.Namespace) -> Rate:
    """SAC on one Gymnasium Hopper, an update a step; random steps and 50 updates are not measured."""
    import d3rlpy
    import gymnasium

    env = gymnasium.make("Hopper-v5")
    learner = _learner("SAC")
    buffer = d3rlpy.dataset.create_fifo_replay_buffer(1_000_000, env=env)

    def fit(steps: int, random_steps: int) -> None:
        learner.fit_online(
            env,
            buffer,
            n_steps=steps,
            n_steps_per_epoch=steps,
            random_steps=random_steps,
            update_start_step=random_steps,
            show_progress=False,
            logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        )

    fit(OFF_POLICY.random_steps + WARM_UP, OFF_POLICY.random_steps)
    # `fit_online` resets the world when called but leaves the buffer's last episode open.
    buffer.clip_episode(False)
    steps = scaled(MEASURED_UPDATES, args)
    return timed(steps, ENV_STEPS, lambda: fit(steps, 0))


if __name__ == "__main__":
    main(
        {
            "sac-hopper": sac_hopper,
            "td3bc": lambda args: _offline("TD3PlusBC", args),
            "iql": lambda args: _offline("IQL", args),
        },
        packages=("d3rlpy", "torch", "gymnasium", "mujoco"),
    )
