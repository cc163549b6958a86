"""A tiny setting for any learner, built from what its card and its fields say.

Every learner of the registry is found here, its variants included. A new learner needs a line in this
file only if it has a hyperparameter or trains a network of a name that no other learner has.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from habitus.core.card import Card, cards
from habitus.core.errors import SpaceMismatch
from habitus.core.experience import Sides, Step, Trajectory, Transition
from habitus.core.protocols import Env, Learner, Policy, Source
from habitus.core.spec import Spec
from habitus.core.trees import take
from habitus.data.dataset import Dataset
from habitus.data.source import DatasetSource
from habitus.train.rollouts import Rollouts
from habitus.train.sources import Replay

# hyperparameters that make any learner small and quick, where it has them
TINY = {
    "hidden": (16, 16),
    "critic_hidden": (16, 16),
    "vae_hidden": (16, 16),
    "dynamics_hidden": (16, 16),
    "policies": 2,
    "models": 2,
    "elites": 1,
    "gate_every": 10,
    "gate_starts": 8,
    "gate_horizon": 4,
    "learning_rate": 3e-3,
    "improve_learning_rate": 3e-3,
    "batch_size": 32,
    "tau": 0.05,
    "target_period": 20,
    "copy_period": 20,
    "epsilon_updates": 200,
    "samples": 4,
    "num_envs": 16,
    "rollout_length": 8,
    "epochs": 4,
    "minibatch_size": 64,
    "inner_steps": 4,
    "bc_updates": 2,
    "bc_batch_size": 32,
    "capacity": 256,
    "value_epochs": 2,
    "value_samples": 4,
    "value_batch_size": 64,
    "min_reward": -1.0,
    "context": 2,
    "width": 16,
    "layers": 1,
    "warmup_updates": 20,
    "latent_size": 4,
    "candidates": 16,
    "predicted": 2,
    "executed": 1,
    "blocks": 1,
    "levels": 10,
    "valued": 1,
    "refined": 1,
    "period": 2,
    "refiner_width": 16,
    "refiner_blocks": 1,
    "query_size": 8,
}
# what a class cannot be as small as the rest in
TINY_OF = {"RDP": {"predicted": 4, "latency": 1, "units": 16, "tokenizer_learning_rate": 3e-3}}
# how strongly it is held to the log: weakly here, as the log of those who estimate values is random
LOOSE = {
    "td3bc": {"alpha": 10.0},
    "prdc": {"alpha": 10.0},
    "a2pr": {"alpha": 10.0},
    "uni-o4": {"improve_share": 0.4},
    "cql": {"alpha": 0.5},
    "hnpg": {"value_learning_rate": 3e-3},
    "trpo-stepwise": {"value_learning_rate": 3e-3},
    "reinflow": {"entropy": 0.0, "noise_high": 0.5, "critic_warmup": 0},
    "hume": {"rewards": "log", "alpha": 0.1, "value_learning_rate": 3e-3},
}
# so that the value of a state is the sum of discounted rewards and nothing else
PLAIN = {"discount": 0.5, "temperature": 1e-6, "tune_temperature": False}
PLAIN_OF = {
    "cql": {"alpha": 0.0},
    "cql-discrete": {"alpha": 0.0},
    "h2o": {"penalty": 0.0},
    "uni-o4": {"clone_share": 0.01, "improve_share": 0.01},
    "hnpg": {"value_learning_rate": 3e-3, "max_kl": 1e-9},
    "trpo-stepwise": {"value_learning_rate": 3e-3, "max_kl": 1e-9},
    "pcg-imitation": {"num_envs": 8},
    "reinflow": {"scale_rewards": False, "value_learning_rate": 3e-3},
    "hume": {"rewards": "log", "alpha": 0.0, "value_learning_rate": 3e-3, "plan_share": 0.01, "value_share": 0.98},
}

# what each network that a learner may train is for
ROLES = {
    "actor": "policy",
    "clone": "policy",
    "log_temperature": "weight",
    "critic": "value",
    "value": "value",
    "cost_critic": "value",
    "vae": "generator",
    "balance": "weight",
    "discriminators": "model",
    "dynamics": "model",
    "decoder": "policy",
    "prior": "generator",
    "posterior": "generator",
    "ratio": "model",
    "denoiser": "policy",
    "tokenizer": "generator",
    "refiner": "policy",
}

# values that a numeric hyperparameter of this name must refuse
BAD = {
    "learning_rate": (0.0, -1e-3),
    "vae_learning_rate": (0.0, -1e-3),
    "improve_learning_rate": (0.0,),
    "dynamics_learning_rate": (0.0,),
    "value_learning_rate": (0.0,),
    "clone_share": (0.0, 1.0),
    "plan_share": (0.0, 1.0),
    "value_share": (0.0, 1.0),
    "theta1": (0.0, 1.1),
    "theta2": (0.0, 1.1),
    "valued": (0, 99),
    "refined": (0, 99),
    "period": (0, 99),
    "refiner_width": (0, 7),
    "improve_share": (0.0, 1.0),
    "diversity": (-0.1,),
    "penalty": (-0.1,),
    "offline_weight": (-0.1,),
    "limit": (-0.1,),
    "max_kl": (0.0,),
    "damping": (-0.1,),
    "outside": (0.0, 1.0),
    "bandwidth": (0.0,),
    "cg_steps": (0,),
    "backtracks": (0,),
    "max_rows": (0,),
    "bc_updates": (-1,),
    "return_weight": (-0.1,),
    "local_weight": (-0.1,),
    "global_weight": (-0.1,),
    "gap_noise": (-0.1,),
    "input_noise": (-0.1,),
    "min_weight": (-0.1,),
    "gap_samples": (0,),
    "elites": (0, 99),
    "reg_weight": (-0.1,),
    "low": (-0.1, 1e3),
    "high": (-0.1,),
    "waves": (0, 3),
    "vae_weight": (-0.1,),
    "discount": (-0.1, 1.1),
    "gae_lambda": (-0.1, 1.1),
    "tau": (0.0, 1.1),
    "temperature": (-1.0,),
    "alpha": (-1.0,),
    "expectile": (0.0, 1.0),
    "max_weight": (0.0,),
    "beta": (-1.0,),
    "noise": (-0.1,),
    "noise_clip": (-0.1,),
    "exploration": (-0.1,),
    "clip": (0.0,),
    "value_clip": (0.0,),
    "entropy": (-0.1,),
    "max_grad_norm": (0.0,),
    "weight_decay": (-0.1,),
    "mi_weight": (-0.1,),
    "dropout": (-0.1, 1.0),
    "goal_drop": (-0.1, 1.1),
    "ema_decay": (-0.1, 1.0),
    "steps": (0,),
    "sigma_data": (0.0,),
    "sigma_min": (0.0, 99.0),
    "sigma_max": (0.0,),
    "heads": (0, 3, 7),
    "step_size": (0.0,),
    "tsallis_q": (0.0, 2.5),
    "kl_weight": (-0.1,),
    "regularisation": (-0.1,),
    "logit_penalty": (-0.1,),
    "threshold": (-0.1, 1.1),
    "n_step": (0,),
    "value_bound": (0.0,),
    "bound_weight": (-0.1,),
    "priority_alpha": (-0.1,),
    "priority_beta": (-0.1, 1.1),
    "epsilon_start": (-0.1, 1.1),
    "epsilon_end": (-0.1, 1.1),
    "bonus": (-0.1,),
    "min_reward": (1.0, float("-inf")),
    "max_reward": (0.0, float("inf")),
    "max_return": (0.0,),
    "predicted": (0,),
    "executed": (0, 99),
    "eta": (-0.1, 1.1),
    "noise_low": (0.0, 1.0),
    "noise_high": (0.01,),
    "noise_hold": (-0.1, 1.1),
    "critic_warmup": (-1,),
    "factor": (0.0,),
    "sampling_steps": (0,),
    "tokenizer_share": (0.0, 1.0),
    "tokenizer_learning_rate": (0.0,),
    "tokenizer_decay": (-0.1,),
    "latency": (-1, 99),
} | dict.fromkeys(
    (
        "batch_size", "epochs", "minibatch_size", "value_epochs", "value_batch_size", "inner_steps", "num_envs",
        "rollout_length", "actor_delay", "target_period", "copy_period", "epsilon_updates", "samples",
        "cg_steps", "backtracks", "value_samples", "neighbours", "max_pairs", "bc_batch_size", "capacity",
        "policies", "models", "gate_every", "gate_starts", "gate_horizon", "context", "width", "layers",
        "warmup_updates", "latent_size", "candidates", "observed", "blocks", "levels",
        "channels", "units", "tokenizer_warmup",
        "positive", "refining_steps", "query_size", "refiner_blocks",
    ),
    (0,),
)  # fmt: skip
# numeric hyperparameters of which every finite value makes sense
ANY = {"target_entropy", "first_log_std", "target", "guidance"}

SPACES = {"continuous": spaces.Box(-2, 2, (1,)), "discrete": spaces.Discrete(2, start=3)}


class Identity(Env):
    """Shows one of two codes and ends; the best action repeats the code. Its return is then 0, less otherwise."""

    kind: str = eqx.field(static=True)
    costly: bool = eqx.field(static=True, default=False)  # whether it reports a cost, of 0

    @property
    def costs(self) -> tuple[str, ...]:
        return ("nothing",) if self.costly else ()

    @property
    def observation_space(self) -> spaces.Space:
        return spaces.Box(-1, 1, (2,))

    @property
    def action_space(self) -> spaces.Space:
        return SPACES[self.kind]

    @property
    def horizon(self) -> int:
        return 1

    def reset(self, key):
        code = jax.random.bernoulli(key).astype(jnp.int32)
        return code, jax.nn.one_hot(code, 2)

    def step(self, state, action, key):
        info = {"cost": jnp.zeros(1)} if self.costly else {}
        return state, Step(
            jax.nn.one_hot(state, 2), reward(self.kind, state, action), jnp.array(True), jnp.array(False), info
        )


def best(kind: str, code):
    """The best action for a code, in the space of `Identity`."""
    return code + 3 if kind == "discrete" else 2.0 * code - 1.0


def reward(kind: str, code, action):
    """What `Identity` pays: at most 0."""
    if kind == "discrete":
        return -(action != best(kind, code)).astype(jnp.float32)
    return -jnp.square((action[0] - best(kind, code)) / 2)


def small(cls: type[Learner], **changes: Any) -> Learner:
    """A learner, small, with some hyperparameters changed where it has them."""
    known = {f.name for f in dataclasses.fields(cls)}
    return cls(**{k: v for k, v in (TINY | TINY_OF.get(cls.__name__, {}) | changes).items() if k in known})


@dataclasses.dataclass(frozen=True)
class Setting:
    """A learner and something to learn from.

    Attributes:
        slug, cls, card: which learner.
        kind: of the actions, 'continuous' or 'discrete'.
    """

    slug: str
    cls: type[Learner]
    card: Card
    kind: str

    def __str__(self) -> str:
        return f"{self.slug}-{self.kind}"

    @property
    def data(self) -> str:
        """What it learns from here: its own actions if it must, else the first of what its card names."""
        return "env" if self.cls.on_policy else self.card.data[0]

    @property
    def learner(self) -> Learner:
        """The learner, small."""
        return self.make(**LOOSE.get(self.slug, {}))

    def make(self, **changes) -> Learner:
        """The learner, small, with some hyperparameters changed where it has them."""
        return small(self.cls, **changes)

    @property
    def source(self) -> Source:
        """What it learns from: one object, so that every test runs the same program."""
        return source(self.data, self.kind, self.cls, self.learner.window, self.learner.before)

    @property
    def steps(self) -> int:
        """Enough to learn it."""
        return self.source.steps(100 if self.cls.on_policy else 1500)

    @property
    def value_networks(self) -> list[str]:
        """The trained networks that estimate values."""
        return [name for name in self.cls.trains if ROLES[name] == "value"]


def _supports(cls: type[Learner], kind: str) -> bool:
    spec = dataclasses.replace(log(kind, expert=False).spec, updates=1)
    try:
        eqx.filter_eval_shape(cls().init, spec, jax.random.key(0))
    except SpaceMismatch:
        return False
    return True


@cache
def learners() -> dict[str, tuple[Card, type[Learner]]]:
    """Every learner of the registry, variants included, by slug."""
    found = {}
    for slug, card in cards().items():
        if card.kind == "learner":
            module = importlib.import_module(card.module)
            for name, entry in ((slug, card.entry), *card.variants):
                found[name] = card, getattr(module, entry)
    return found


@cache
def settings() -> list[Setting]:
    """One setting for each learner and each kind of actions it handles."""
    return [
        Setting(slug, cls, card, kind)
        for slug, (card, cls) in learners().items()
        for kind in card.actions
        if not card.variants or _supports(cls, kind)
    ]


@cache
def log(kind: str, expert: bool, length: int = 1) -> Dataset:
    """Decisions in `Identity`: of nearly the best actions, or of uniformly random ones.

    With `length` above 1, episodes are of that many codes in turn.
    """
    rng, rows = np.random.default_rng(0), 512
    code = rng.integers(0, 2, rows)
    if kind == "discrete":
        good = rng.random(rows) < 0.98 if expert else rng.random(rows) < 0.5
        action = np.where(good, best(kind, code), 7 - best(kind, code))
    else:
        spread = rng.normal(0, 0.2, rows) + best(kind, code) if expert else rng.uniform(-2, 2, rows)
        action = spread.clip(-2, 2).astype(np.float32)[:, None]
    obs = np.eye(2, dtype=np.float32)[code]
    return Dataset.from_arrays(
        obs=obs,
        next_obs=np.where((np.arange(1, rows + 1) % length == 0)[:, None], obs, np.roll(obs, -1, 0)),
        action=action,
        reward=np.asarray(jax.vmap(lambda c, a: reward(kind, c, a))(code, jnp.asarray(action))),
        terminated=np.arange(1, rows + 1) % length == 0,
        truncated=np.zeros(rows, bool),
        observation_space=Identity(kind).observation_space,
        action_space=SPACES[kind],
    )


@cache
def source(data: str, kind: str, cls: type[Learner], window: int | None, before: int = 0) -> Source:
    """A log, or the world itself."""
    if data == "log":
        # who estimates no values can only be as good as the log
        # the windows of one-step episodes are mostly padding
        given = log(kind, expert="value" not in map(ROLES.get, cls.trains), length=4 if window else 1)
        return DatasetSource(given, TINY["batch_size"], window, from_start=cls.from_start, before=before)
    world = Identity(kind, cls.constrained)
    if cls.on_policy and cls.from_start:
        # who keeps every episode is told their number beforehand
        envs = TINY["num_envs"] * (1 if cls.takes_log else TINY["rollout_length"])
        rows = DatasetSource(log(kind, expert=False), envs, window=1, from_start=True) if cls.sides else None
        return Rollouts(world, envs, 1, fresh=True, beside=rows)
    if cls.on_policy and cls.sides:
        rows = DatasetSource(log(kind, expert=False), TINY["batch_size"])
        return Rollouts(world, TINY["num_envs"], TINY["rollout_length"], beside=rows)
    if cls.on_policy:
        size = {"num_envs": TINY["num_envs"], "length": TINY["rollout_length"]}
        return small(cls).rollouts(world, **size) or Rollouts(world, **size)
    if cls.sides:
        real, size = log(kind, expert=False), TINY["batch_size"]
        return Replay(world, size, 4096, num_envs=8, warmup=256, updates_per_step=1 / 8, prefill=real, apart=True)
    return Replay(world, TINY["batch_size"], capacity=4096, num_envs=8, warmup=256, updates_per_step=1 / 8)


@eqx.filter_jit
def mean_reward(policy: Policy, kind: str):
    """What a policy earns in `Identity`, in the user's own spaces."""
    codes, keys = jnp.arange(256) % 2, jax.random.split(jax.random.key(0), 256)

    def one(code, key):
        action, _ = policy(jax.nn.one_hot(code, 2), policy.init(), key)
        return reward(kind, code, action)

    return jax.vmap(one)(codes, keys).mean()


def given_two_states(
    cls: type[Learner], kind: str, window: int | None, ends_as: str
) -> Transition | Trajectory | Sides:
    """The batch that a learner of this class gets of `two_states`."""
    if window:
        return in_windows(two_states(kind, (128,), ends_as), window)
    if cls.on_policy and cls.from_start:
        own = two_states(kind, (2, 64), ends_as)
        steps = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), own)
        time = jnp.broadcast_to(jnp.arange(2), (64, 2))
        logged = Trajectory(steps, jnp.ones((64, 2), bool), time, 2.0 - time)
        return Sides(own, logged) if cls.sides else own
    own = two_states(kind, (16, 8) if cls.on_policy else (128,), ends_as, cls.constrained)
    if cls.on_policy and (acts := small(cls).rollouts(Identity(kind))) is not None:  # windows, and chains of chunks
        chain = jnp.broadcast_to(own.action[..., None, None, :], (16, 8, *acts.env.action_space.shape))
        own = dataclasses.replace(own, obs=own.obs[..., None, :], next_obs=own.next_obs[..., None, :], action=chain)
    return Sides(own, two_states(kind, (128,), ends_as)) if cls.sides else own


def two_states(kind: str, shape: tuple[int, ...], ends_as: str, costly: bool = False) -> Transition:
    """A world that goes from one state to another, pays 1 for every step, and is cut after two.

    Args:
        shape: [rows], or [time, env].
        ends_as: 'truncated' or 'terminated'.
        costly: whether every step costs 1 as well.

    Returns:
        transitions in canonical form.
    """
    time = jnp.broadcast_to(jnp.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1)), shape)
    second, key = time % 2 == 1, jax.random.key(0)
    if kind == "discrete":
        action = jax.random.randint(key, shape, 0, 2)
    else:
        action = jax.random.uniform(key, (*shape, 1), minval=-1.0)
    state = second.astype(jnp.int32)
    return Transition(
        obs=jax.nn.one_hot(state, 2),
        action=action,
        reward=jnp.ones(shape),
        terminated=second & (ends_as == "terminated"),
        truncated=second & (ends_as == "truncated"),
        next_obs=jax.nn.one_hot(1 - state, 2),
        cost=jnp.ones((*shape, 1)) if costly else None,
    )


def in_windows(rows: Transition, length: int) -> Trajectory:
    """The windows of `two_states` that begin at each of its rows [128]: [128, length]."""
    time = jnp.arange(128) % 2
    found = jnp.arange(128)[:, None] + jnp.minimum(jnp.arange(length), 1 - time[:, None])
    valid = jnp.arange(length) < 2 - time[:, None]
    return Trajectory(take(rows, found), valid, time[found], 2.0 - time[found], 1 - time[found])


@eqx.filter_jit
def run_updates(learner: Learner, state, batch, n: int):
    """`n` updates from one batch."""
    arrays, static = eqx.partition(state, eqx.is_array)

    def one(arrays, key):
        after, metrics = learner.update(eqx.combine(arrays, static), batch, key)
        return eqx.filter(after, eqx.is_array), metrics

    arrays, _ = jax.lax.scan(one, arrays, jax.random.split(jax.random.key(1), n))
    return eqx.combine(arrays, static)


def planned(setting: Setting) -> Spec:
    """The contract as `learn` hands it over."""
    return dataclasses.replace(setting.source.spec, updates=500)


def one_batch(setting: Setting, learner: Learner, state) -> Any:
    """The first batch of the setting's source."""
    explorer = learner.explorer(state)
    return setting.source.draw(setting.source.init(explorer, jax.random.key(2)), explorer, jax.random.key(3))[1]


def numeric(cls: type[Learner]) -> dict[str, bool]:
    """The hyperparameters of a learner that are numbers, and whether they may be fractions."""
    kinds = {f.name: str(f.type) for f in dataclasses.fields(cls)}
    return {name: "float" in kind for name, kind in kinds.items() if re.match(r"(float|int)\b", kind)}
