"""The works of Stable-Baselines3 and SBX, whose interface is the same."""

from __future__ import annotations

import argparse
import importlib
import time
from typing import Any

from side import ENV_STEPS, OFF_POLICY, PPO, Rate, Start, Work, scaled, timed

MEASURED_ROUNDS = 128
MEASURED_SAC_STEPS = 1_000


def works(package: str) -> dict[str, Work]:
    """What the package named `package` (`stable_baselines3` or `sbx`) is measured at."""
    return {
        "ppo-gym-cartpole": lambda args: ppo_gym_cartpole(importlib.import_module(package), args),
        "sac-hopper": lambda args: sac_hopper(importlib.import_module(package), args),
        "start": lambda args: start(package, args),
    }


def _ppo(library: Any) -> Any:
    from stable_baselines3.common.env_util import make_vec_env

    return library.PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=PPO.envs),
        n_steps=PPO.steps,
        n_epochs=PPO.epochs,
        batch_size=PPO.batch,
        learning_rate=PPO.learning_rate,
        gamma=PPO.discount,
        gae_lambda=PPO.gae_lambda,
        clip_range=PPO.clip,
        ent_coef=PPO.entropy,
        vf_coef=PPO.value,
        max_grad_norm=PPO.max_grad_norm,
        policy_kwargs={"net_arch": list(PPO.hidden)},
        device="cpu",
        seed=0,
    )


def ppo_gym_cartpole(library: Any, args: argparse.Namespace) -> Rate:
    """PPO on eight Gymnasium CartPoles in one process; two rounds of warm-up are not measured."""
    model = _ppo(library)
    model.learn(2 * PPO.round)
    steps = scaled(MEASURED_ROUNDS * PPO.round, args, PPO.round)
    return timed(steps, ENV_STEPS, lambda: model.learn(steps, reset_num_timesteps=False))


def sac_hopper(library: Any, args: argparse.Namespace) -> Rate:
    """SAC on one Gymnasium Hopper, an update a step; random steps and 50 updates are not measured."""
    model = library.SAC(
        "MlpPolicy",
        "Hopper-v5",
        batch_size=OFF_POLICY.batch,
        learning_rate=OFF_POLICY.learning_rate,
        gamma=OFF_POLICY.discount,
        tau=OFF_POLICY.tau,
        learning_starts=OFF_POLICY.random_steps,
        train_freq=1,
        gradient_steps=1,
        policy_kwargs={"net_arch": list(OFF_POLICY.hidden)},
        device="cpu",
        seed=0,
    )
    model.learn(OFF_POLICY.random_steps + 50)
    steps = scaled(MEASURED_SAC_STEPS, args)
    return timed(steps, ENV_STEPS, lambda: model.learn(steps, reset_num_timesteps=False))


def start(package: str, args: argparse.Namespace) -> Start:
    """The import, and the first round of PPO after the command started."""
    begin = time.perf_counter()
    library = importlib.import_module(package)
    import_s = time.perf_counter() - begin
    _ppo(library).learn(PPO.round)
    return Start(import_s, time.time() - args.started)
