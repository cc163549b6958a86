"""habitus' side: `habitus_run.py WORK` prints one line of JSON."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from side import ENV_STEPS, LOG, OFF_POLICY, PPO, UPDATES, Rate, Start, main, random_log, scaled

# `learn` reports at this many points of a run. The first stretch, which compiles, is not measured.
POINTS = 11


def measured(amount: int, unit: str, learn: Callable[..., Any], seeds: int = 1) -> Rate:
    """The rate of a run by its own record, from the first of its points to the last.

    Args:
        amount: environment steps or updates to measure, for each seed.
        unit: `ENV_STEPS` or `UPDATES`.
        learn: `habitus.learn` but for `steps` and what is kept of the run.
        seeds: how many learn at once; the rate is that of all together.
    """
    with tempfile.TemporaryDirectory() as folder:
        steps = amount * POINTS // (POINTS - 1)
        learn(steps=steps, seeds=seeds, points=POINTS, checkpoints=1, folder=Path(folder) / "run")
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    counter = "step" if unit == ENV_STEPS else "update"
    done = seeds * (rows[-1][counter] - rows[0][counter])
    seconds = rows[-1]["seconds"] - rows[0]["seconds"]
    return Rate(done / seconds, unit, seconds)


def _settings(slug: str) -> dict[str, Any]:
    """The hyperparameters of `side.PPO` as the method calls them; MDPO's actor takes full batches."""
    shared = {
        "num_envs": PPO.envs,
        "rollout_length": PPO.steps,
        "hidden": PPO.hidden,
        "learning_rate": PPO.learning_rate,
        "discount": PPO.discount,
        "gae_lambda": PPO.gae_lambda,
        "max_grad_norm": PPO.max_grad_norm,
    }
    if slug == "mdpo":
        return shared | {"inner_steps": PPO.epochs, "value_epochs": PPO.epochs, "value_batch_size": PPO.batch}
    return shared | {"epochs": PPO.epochs, "minibatch_size": PPO.batch, "clip": PPO.clip, "entropy": PPO.entropy}


def _on_policy(slug: str, env: str, rounds: int, args: argparse.Namespace) -> Rate:
    """Whole rounds of collecting and learning."""
    import habitus

    steps = scaled(rounds * PPO.round, args, PPO.round * (POINTS - 1))
    return measured(steps, ENV_STEPS, lambda **rest: habitus.learn(slug, env=env, **_settings(slug), **rest))


def sac_hopper(args: argparse.Namespace) -> Rate:
    """SAC on one Gymnasium Hopper, an update a step; random steps and the first updates are not measured."""
    import habitus

    def learn(steps: int, **rest: Any) -> Any:
        warmup = OFF_POLICY.random_steps
        source = {"warmup": warmup, "updates_per_step": 1}
        return habitus.learn(
            "sac", env="Hopper-v5", steps=warmup + steps, source_options=source, **_off_policy(), **rest
        )

    return measured(scaled(2_000, args, POINTS - 1), ENV_STEPS, learn)


def _off_policy() -> dict[str, Any]:
    return {
        "batch_size": OFF_POLICY.batch,
        "hidden": OFF_POLICY.hidden,
        "learning_rate": OFF_POLICY.learning_rate,
        "discount": OFF_POLICY.discount,
        "tau": OFF_POLICY.tau,
    }


def _offline(slug: str, args: argparse.Namespace, seeds: int = 1) -> Rate:
    """Updates from a log of random transitions."""
    from gymnasium.spaces import Box

    import habitus
    from habitus.data.dataset import Dataset

    log = random_log()
    data = Dataset.from_arrays(
        log["obs"],
        log["action"],
        log["reward"],
        terminated=log["ends"] & False,
        truncated=log["ends"],
        action_space=Box(-1, 1, (LOG.action,)),
    )
    updates = scaled(4_000, args, POINTS - 1)
    return measured(updates, UPDATES, lambda **rest: habitus.learn(slug, data=data, **_off_policy(), **rest), seeds)


def start(args: argparse.Namespace) -> Start:
    """The first round of PPO with an empty compile cache, and again with the cache that this left."""
    with tempfile.TemporaryDirectory() as cache:
        first, second = (_first_round(cache) for _ in range(2))
    return Start(first["import_s"], first["first_update_s"], second["first_update_s"])


def _first_round(cache: str) -> dict[str, float]:
    command = [sys.executable, __file__, "first-round", "--started", str(time.time())]
    environment = os.environ | {"HABITUS_CACHE": cache}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def first_round(args: argparse.Namespace) -> Start:
    """The import, and the first round of PPO after the command started, with the compile cache as it is."""
    begin = time.perf_counter()
    import habitus

    import_s = time.perf_counter() - begin
    habitus.learn("ppo", env="cartpole", steps=PPO.round, **_settings("ppo"))
    return Start(import_s, time.time() - args.started)


if __name__ == "__main__":
    main(
        {
            "ppo-cartpole": lambda args: _on_policy("ppo", "cartpole", 2_048, args),
            "mdpo-cartpole": lambda args: _on_policy("mdpo", "cartpole", 2_048, args),
            "ppo-gym-cartpole": lambda args: _on_policy("ppo", "CartPole-v1", 160, args),
            "sac-hopper": sac_hopper,
            "td3bc": lambda args: _offline("td3bc", args),
            "iql": lambda args: _offline("iql", args),
            "td3bc-4seeds": lambda args: _offline("td3bc", args, seeds=4),
            "td3bc-5seeds": lambda args: _offline("td3bc", args, seeds=5),
            "start": start,
            "first-round": first_round,
        },
        packages=("habitus", "jax", "equinox", "gymnasium"),
    )
