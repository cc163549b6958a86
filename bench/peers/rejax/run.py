"""Rejax's side: `run.py WORK` prints one line of JSON."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from side import ENV_STEPS, PPO, Rate, main, scaled, timed

MEASURED_ROUNDS = 2_048


def ppo_cartpole(args: argparse.Namespace) -> Rate:
    """PPO compiled with CartPole as one program; compiling it is not measured."""
    import jax
    import jax.numpy as jnp
    import rejax

    steps = scaled(MEASURED_ROUNDS * PPO.round, args, PPO.round)
    algorithm = rejax.PPO.create(
        env="CartPole-v1",
        num_envs=PPO.envs,
        num_steps=PPO.steps,
        num_epochs=PPO.epochs,
        num_minibatches=PPO.round // PPO.batch,
        learning_rate=PPO.learning_rate,
        gamma=PPO.discount,
        gae_lambda=PPO.gae_lambda,
        clip_eps=PPO.clip,
        ent_coef=PPO.entropy,
        vf_coef=PPO.value,
        max_grad_norm=PPO.max_grad_norm,
        agent_kwargs={"hidden_layer_sizes": PPO.hidden, "activation": "tanh"},
        total_timesteps=steps,
        eval_freq=steps,
        skip_initial_evaluation=True,
    )
    # Learning alone is compared: rejax would otherwise evaluate 128 episodes at the end.
    algorithm = algorithm.replace(eval_callback=lambda algorithm, state, key: jnp.zeros(()))
    train = jax.jit(algorithm.train).lower(jax.random.key(0)).compile()
    return timed(steps, ENV_STEPS, lambda: jax.block_until_ready(train(jax.random.key(0))))


if __name__ == "__main__":
    main({"ppo-cartpole": ppo_cartpole}, packages=("rejax", "gymnax", "jax", "flax"))
