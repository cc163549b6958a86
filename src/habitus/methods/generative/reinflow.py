"""ReinFlow: online reinforcement learning of a flow policy.

A little learned noise in every step of the flow makes a Markov chain of it, whose joint likelihood is
exact however few steps there are. So PPO applies as it is, with chains for actions: velocity and noise are
learned together, and the policy that is deployed leaves the noise out.

T. Zhang, C. Yu, S. Su and Y. Wang, "ReinFlow: Fine-tuning Flow Matching Policy with Online Reinforcement
Learning", NeurIPS 2025.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.errors import ConfigError
from habitus.core.experience import Transition
from habitus.core.protocols import Env, HostEnv, Policy, Source, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, minibatches, select, trainable
from habitus.execution.horizon import RecedingHorizon
from habitus.execution.planner import Sampled
from habitus.generative.chains import FlowChain
from habitus.generative.chunks import Chunking
from habitus.generative.denoisers import ResidualMLP, check_residual
from habitus.methods.generative._chunks import Window
from habitus.methods.generative.flow_policy import PERIODS, Timed
from habitus.methods.online.ppo import PPO, PPOState
from habitus.nets.embedding import sinusoidal
from habitus.nets.losses import Round, prepare_round
from habitus.nets.mlp import MLP
from habitus.nets.normalise import RunningMoments, Standardiser
from habitus.nets.policies import Normalised, Sampling
from habitus.train.chunk_rollouts import ChunkRollouts

CARD = Card(
    title="ReinFlow: Fine-tuning Flow Matching Policy with Online Reinforcement Learning",
    authors="Zhang, Tonghe and Yu, Chao and Su, Sichang and Wang, Yu",
    year=2025,
    venue="Advances in Neural Information Processing Systems",
    arxiv="2505.22094",
    kind="learner",
    entry="ReinFlow",
    data=("env",),
    actions=("continuous",),
)

WAVES = 16  # features of the time that the noise is told
LEAST = 0.3  # share of the least noise in the greatest, once it has fallen; authors' code


class NoisyFlow(eqx.Module):
    """What is learned: the velocity, and how much noise each step has."""

    network: ResidualMLP
    noise: MLP


class Noise(eqx.Module):
    """`sigma(t, window)` in [low, high]: `exp(l_0 + (l_1 - l_0) (tanh(raw) + 1) / 2)`, `l` the logarithms of both."""

    net: MLP
    low: Any  # numbers
    high: Any
    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, t: Float[Array, ""], window: Window) -> Float[Array, "predicted actions"]:
        code = sinusoidal(jnp.asarray(PERIODS * t, jnp.float32), WAVES)
        raw = self.net(jnp.concatenate([code, window.ravel()])).reshape(self.shape)
        low, high = jnp.log(self.low), jnp.log(self.high)
        return jnp.exp(low + (high - low) * (jnp.tanh(raw) + 1) / 2)


class ChainActor(eqx.Module):
    """A window of observations to the distribution of chains."""

    flow: NoisyFlow
    low: Any
    high: Any
    steps: int = eqx.field(static=True)

    def __call__(self, window: Window) -> FlowChain:
        shape = self.flow.network.shape
        noise = Noise(self.flow.noise, self.low, self.high, shape)
        return FlowChain(shape, self.steps, Timed(self.flow.network), noise, window)


class WindowValue(eqx.Module):
    """V of a window of observations."""

    net: MLP

    def __call__(self, window: Window) -> Float[Array, ""]:
        return self.net(window.ravel())[0]


class Drawn(eqx.Module):
    """Draws a chunk by the flow without noise in its steps."""

    actor: ChainActor

    def __call__(self, window: Window, key: PRNGKeyArray) -> Float[Array, "predicted actions"]:
        chains = self.actor(window)
        return chains.without_noise(jax.random.normal(key, chains.shape))


class ReinFlowState(PPOState):
    """The state of PPO, the scale of rewards, and how far the run is."""

    frozen: Standardiser
    earned: RunningMoments
    total: Int[Array, ""]
    done: Int[Array, ""]
    obs_shape: tuple[int, ...] = eqx.field(static=True)

    @property
    def normaliser(self) -> Standardiser:
        return self.frozen


class ReinFlow(PPO):
    """PPO over the chains of a flow policy: `learn("reinflow", env=..., warm_start=run)`, with a run of `flow-policy`.

    Bounded real actions, in compiled worlds. Sizes must be those of the earlier run. Rewards of a chunk are summed
    and divided by a running standard deviation of discounted returns, counted within each roll-out.
    """

    learning_rate: float = 1e-4  # authors' code: 4.5e-5
    value_learning_rate: float = 1e-3  # authors' code: 6.5e-4
    clip: float = 0.05  # of the ratio, a geometric mean; authors' code: 0.01
    entropy: float = 0.01  # authors' code: 0.03
    epochs: int = 5  # authors' code
    minibatch_size: int = 640
    num_envs: int = 64
    rollout_length: int = 50  # chunks
    hidden: tuple[int, ...] = (128, 128, 128)  # of the value
    sampling_steps: int = 4  # K
    predicted: int = 2  # Tp; authors' code: 4
    observed: int = 1  # To
    executed: int = 2  # Ta
    width: int = 256
    blocks: int = 2
    noise_low: float = 0.08
    noise_high: float = 0.20
    noise_hold: float = 0.35  # share of the run after which the greatest noise falls; authors' code
    critic_warmup: int = 3  # rounds in which the value alone learns
    scale_rewards: bool = True  # by a running standard deviation of returns

    continues: ClassVar = ("flow-policy",)

    def __check_init__(self) -> None:
        require((0 < self.noise_low) & (self.noise_low <= self.noise_high), "noise_low must be above 0 and not above "
                f"noise_high, but they are {self.noise_low} and {self.noise_high}.")  # fmt: skip
        require(
            (self.noise_hold >= 0) & (self.noise_hold <= 1), f"noise_hold must be in [0, 1], not {self.noise_hold}."
        )
        require(self.sampling_steps >= 1, f"sampling_steps must be 1 or more, but is {self.sampling_steps}.")
        require(self.critic_warmup >= 0, f"critic_warmup must be 0 or more, but is {self.critic_warmup}.")
        check_residual(self.width, self.blocks)
        _ = self.chunking

    @property
    def chunking(self) -> Chunking:
        """Which steps are seen, predicted and executed."""
        return Chunking(self.predicted, self.observed, self.executed)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return optax.adamw(self.learning_rate, weight_decay=0.0)

    @property
    def critic_optimizer(self) -> optax.GradientTransformation:
        return optax.adamw(self.value_learning_rate, weight_decay=1e-5)

    def rollouts(self, env: Env | HostEnv, **options: Any) -> Source:
        return ChunkRollouts(env, self.chunking, self.sampling_steps + 1, **options)

    def init(self, spec: Spec, key: PRNGKeyArray) -> ReinFlowState:
        spec.require("bounded", type(self).__name__)
        net_key, noise_key, value_key = jax.random.split(key, 3)
        shape, seen = (self.predicted, spec.action_size), self.observed * spec.obs_size
        noise = MLP(WAVES + seen, (64, 64), self.predicted * spec.action_size, noise_key, "tanh")
        actor = NoisyFlow(ResidualMLP(shape, self.width, self.blocks, net_key, seen), noise)
        critic = WindowValue(MLP(seen, self.hidden, 1, value_key, "tanh", final_gain=1.0))
        return ReinFlowState(
            actor=actor,  # type: ignore[arg-type]
            critic=critic,  # type: ignore[arg-type]
            actor_opt=self.optimizer.init(trainable(actor)),
            critic_opt=self.critic_optimizer.init(trainable(critic)),
            moments=None,
            frozen=Standardiser.identity(),
            earned=RunningMoments.start(()),
            total=jnp.asarray(spec.updates or 0, jnp.int32),
            done=jnp.zeros((), jnp.int32),
            obs_shape=spec.obs_shape,
        )

    def adopt(self, state: Any, earlier: Any) -> Any:
        """The average of the flow policy and its scales of observations."""
        if isinstance(earlier, ReinFlowState):
            return earlier
        mine, theirs = ([x.shape for x in jax.tree.leaves(n)] for n in (state.actor.network, earlier.average))
        if mine != theirs:
            raise ConfigError(
                "the flow policy to start from has a network of another size; give predicted, observed, width and "
                "blocks as they were there."
            )
        actor = eqx.tree_at(lambda a: a.network, state.actor, earlier.average)
        return dataclasses.replace(state, actor=actor, frozen=earlier.normaliser)

    def greatest_noise(self, state: ReinFlowState) -> Float[Array, ""]:
        """`noise_high` for the first share of the run, then falling as a cosine to `0.3 low + 0.7 high`."""
        share = state.done / jnp.maximum(state.total, 1)
        after = jnp.clip((share - self.noise_hold) / jnp.maximum(1 - self.noise_hold, 1e-6), 0.0, 1.0)
        last = LEAST * self.noise_low + (1 - LEAST) * self.noise_high
        return last + (self.noise_high - last) * (1 + jnp.cos(jnp.pi * after)) / 2

    def chains(self, flow: Any, state: Any) -> ChainActor:
        """The flow with as much noise as it has now."""
        return ChainActor(flow, self.noise_low, self.greatest_noise(state), self.sampling_steps)

    def actor_loss(self, actor: Any, state: PPOState, batch: Round, key: PRNGKeyArray) -> tuple[Array, Metrics]:
        """The clipped surrogate of chains, as of any actions (eq. 8)."""
        return super().actor_loss(self.chains(actor, state), state, batch, key)

    def critic_loss(
        self, critic: Any, state: PPOState, batch: Round, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`mean (V - R)^2 / 2` to the TD(lambda) returns of chunks."""
        loss = 0.5 * ((jax.vmap(critic)(batch.obs) - batch.target) ** 2).mean()
        return loss, {"critic_loss": loss}

    def update(self, state: Any, batch: Transition, key: PRNGKeyArray) -> tuple[Any, Metrics]:
        seen, earned = state.normaliser.transition(batch), state.earned
        if self.scale_rewards:
            earned = earned.update(self.running_returns(batch).ravel())
            seen = dataclasses.replace(seen, reward=seen.reward / jnp.sqrt(earned.var + 1e-8))
        ready = prepare_round(self.chains(state.actor, state), state.critic, seen, self.discount, self.gae_lambda)
        after, metrics = minibatches(self._improve, state, ready, key, self.epochs, self.minibatch_size)
        learns = state.done >= self.critic_warmup
        actor, opt = select(learns, (after.actor, after.actor_opt), (state.actor, state.actor_opt))
        low, most = FlowChain.bounds
        cut = (ready.log_prob <= low) | (ready.log_prob >= most)
        metrics |= {"clamped": cut.mean(), "noise": self.greatest_noise(state)}
        return dataclasses.replace(after, actor=actor, actor_opt=opt, earned=earned, done=state.done + 1), metrics

    def running_returns(self, batch: Transition) -> Float[Array, "time envs"]:
        """`G_t = r_t + gamma G_{t-1}`, from 0 at the start of the roll-out and of each episode."""

        def step(before: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
            found = row[0] + self.discount * before
            return jnp.where(row[1], 0.0, found), found

        return jax.lax.scan(step, jnp.zeros(batch.reward.shape[1:]), (batch.reward, batch.done))[1]

    def policy(self, state: Any) -> Policy:
        length, size = state.actor.network.shape
        planner = Sampled(
            Drawn(self.chains(state.actor, state)), length, size, state.obs_shape, calls=self.sampling_steps
        )
        return Normalised(RecedingHorizon(planner, self.executed, self.observed), state.normaliser)

    def explorer(self, state: Any) -> Policy:
        return Normalised(Sampling(self.chains(state.actor, state)), state.normaliser)
