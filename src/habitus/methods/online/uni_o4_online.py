"""The online stage of Uni-O4: plain PPO, from the best offline policy and the offline value.

Policy, value and the statistics that observations are standardised with come from the offline run,
so nothing changes at the switch: `learn("uni-o4-online", env=..., warm_start=run)`.

K. Lei, Z. He, C. Lu, K. Hu, Y. Gao and H. Xu, "Uni-O4: Unifying Online and Offline Deep Reinforcement
Learning with Multi-Step On-Policy Optimization", ICLR 2024.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import optax
from jaxtyping import PRNGKeyArray

from habitus.core.card import Card
from habitus.core.spec import Spec
from habitus.core.trees import trainable
from habitus.methods.offline.uni_o4 import UniO4State
from habitus.methods.online.ppo import PPO, PPOState
from habitus.nets.heads import SquashedHead, Value
from habitus.nets.normalise import Standardiser

CARD = Card(
    title="Uni-O4: Unifying Online and Offline Deep Reinforcement Learning with Multi-Step On-Policy Optimization",
    authors="Lei, Kun and He, Zhengmao and Lu, Chenhao and Hu, Kaizhe and Gao, Yang and Xu, Huazhe",
    year=2024,
    venue="International Conference on Learning Representations",
    arxiv="2311.03351",
    kind="learner",
    entry="UniO4Online",
    data=("env",),
    actions=("continuous",),
)


class UniO4OnlineState(PPOState):
    """The state of PPO; what it sees is standardised as it was offline, for ever."""

    frozen: Standardiser

    @property
    def normaliser(self) -> Standardiser:
        return self.frozen


class UniO4Online(PPO):
    """PPO from the best offline policy and the offline value. Real, bounded actions."""

    learning_rate: float = 1e-4  # of the actor; authors' code: 1e-5 to 3e-5
    value_learning_rate: float = 3e-4  # authors' code: 2e-4
    clip: float = 0.1  # authors' code: 0.05
    entropy: float = 0.01  # authors' code
    minibatch_size: int = 128  # authors' code
    hidden: tuple[int, ...] = (256, 256)

    continues: ClassVar = ("uni-o4",)

    @property
    def critic_optimizer(self) -> optax.GradientTransformation:
        clip = optax.clip_by_global_norm(self.max_grad_norm)
        return optax.chain(clip, optax.adam(self.value_learning_rate, eps=1e-5))

    def init(self, spec: Spec, key: PRNGKeyArray) -> UniO4OnlineState:
        spec.require("bounded", type(self).__name__)
        actor_key, critic_key = jax.random.split(key)
        actor, critic = SquashedHead(spec, self.hidden, actor_key), Value(spec, self.hidden, critic_key)
        return self._state(actor, critic, Standardiser.identity())

    def _state(self, actor: SquashedHead, critic: Value, frozen: Standardiser) -> UniO4OnlineState:
        return UniO4OnlineState(
            actor=actor,
            critic=critic,
            actor_opt=self.optimizer.init(trainable(actor)),
            critic_opt=self.critic_optimizer.init(trainable(critic)),
            moments=None,
            frozen=frozen,
        )

    def adopt(self, state: UniO4OnlineState, earlier: UniO4State | UniO4OnlineState) -> UniO4OnlineState:
        """The best policy, the value and the statistics of the offline stages."""
        if isinstance(earlier, UniO4OnlineState):
            return earlier
        return self._state(earlier.chosen, earlier.value, earlier.normaliser)
