"""Spaces as learners see them, and the contract (`Spec`) between a source and a learner.

Users' spaces are anything Gymnasium can say. Learners see one canonical form of them:

==================  =========================================================
observation space   what a learner, a buffer and a network see
==================  =========================================================
Box (vector)        float32 [obs]
Box (image)         as it is, [height, width, channels]
Discrete            an integer
MultiDiscrete       float32 [obs], the one-hot codes side by side
Dict, Tuple         float32 [obs], the parts side by side; `names` keeps them apart
==================  =========================================================

Bounded Box actions become [-1, 1]^A; discrete actions integers from 0.
The conversion happens once, where a world or a log enters, and is undone by the policy handed back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float

from habitus.core.errors import ConfigError, SpaceMismatch


def _is_image(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 3


def _leaves(space: spaces.Space, prefix: str = "") -> list[tuple[str, spaces.Space]]:
    """The simple spaces inside nested Dict and Tuple spaces, with dotted names."""
    if isinstance(space, spaces.Dict):
        parts: list[tuple[str, spaces.Space]] = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        parts = [(str(i), s) for i, s in enumerate(space.spaces)]
    else:
        return [(prefix or "obs", space)]
    dot = f"{prefix}." if prefix else ""
    return [leaf for name, part in parts for leaf in _leaves(part, dot + name)]


def _width(name: str, space: spaces.Space) -> int:
    if isinstance(space, spaces.Box):
        return int(np.prod(space.shape))
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    if isinstance(space, spaces.MultiBinary):
        return int(np.prod(space.shape))
    raise SpaceMismatch(
        f"observation {name!r} is a {type(space).__name__}, which has no canonical form; "
        "use Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them."
    )


def _one_hot(index: Array, n: int) -> Float[Array, "... n"]:
    return (index[..., None] == jnp.arange(n)).astype(jnp.float32)


def _vector(space: spaces.Space, value: Any) -> Float[Array, "width"]:
    """One part of an observation as a vector."""
    if isinstance(space, spaces.Discrete):
        return _one_hot(jnp.asarray(value) - int(space.start), int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        flat, sizes = jnp.ravel(jnp.asarray(value) - space.start), space.nvec.ravel()
        # all codes at once: as many small ones, joined, take XLA minutes where there are a hundred integers
        code = np.concatenate([np.arange(n) for n in sizes])
        return (flat[np.repeat(np.arange(len(sizes)), sizes)] == code).astype(jnp.float32)
    return jnp.ravel(jnp.asarray(value, jnp.float32))


def _pick(value: Any, name: str) -> Any:
    """The part of nested dicts and tuples that a dotted name means; keys may have dots themselves."""
    if not name:
        return value
    if isinstance(value, tuple):
        head = name.partition(".")[0]
        return _pick(value[int(head)], name[len(head) + 1 :])
    if not isinstance(value, Mapping):
        raise KeyError(name)
    fitting = [key for key in value if f"{name}.".startswith(f"{key}.")]
    if not fitting:
        raise KeyError(name)
    head = max(fitting, key=len)
    return _pick(value[head], name[len(head) + 1 :])


@dataclasses.dataclass(frozen=True, eq=False)
class Spec:
    """The contract between a source and a learner.

    Attributes:
        observation_space: the user's observation space.
        action_space: the user's action space: Box (bounded), Discrete or MultiDiscrete.
        horizon: longest episode in steps, or None.
        dataset: the log that takes part, in canonical form, or None.
        updates: how many updates are planned, for learners with a schedule, or None.
        acts: whether experience comes from the learner's own actions, wholly or in part.
        costs: names of the costs that come with the transitions, in order.
        switches: entries of a real action that are on or off, by their sign in canonical form, such as a gripper.

    Raises:
        SpaceMismatch: if a space has no canonical form.
        ConfigError: if there is no such entry to be a switch.
    """

    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    horizon: int | None = None
    dataset: Any = None
    updates: int | None = None
    acts: bool = False
    costs: tuple[str, ...] = ()
    switches: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, space in self.leaves:
            _width(name, space)
        if not isinstance(self.action_space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete)):
            raise SpaceMismatch(
                f"the action space is a {type(self.action_space).__name__}; use Box, Discrete or MultiDiscrete."
            )
        if self.switches:
            size = self.action_size if self.continuous else 0
            if not all(0 <= entry < size for entry in self.switches):
                raise ConfigError(f"switches are the entries {self.switches}, but a real action has {size} of them.")

    # --- observations

    @property
    def leaves(self) -> list[tuple[str, spaces.Space]]:
        """The simple spaces of the observation, with dotted names."""
        return _leaves(self.observation_space)

    @property
    def names(self) -> dict[str, slice]:
        """Where each named part of a Dict observation lies in the canonical vector."""
        out, start = {}, 0
        for name, space in self.leaves:
            out[name] = slice(start, start + _width(name, space))
            start = out[name].stop
        return out

    @property
    def mask(self) -> slice | None:
        """Where the canonical vector says which discrete actions are allowed: the part of a Dict observation
        named `action_mask`, 1 for an action that is and 0 for one that is not; None where there is none."""
        found = self.names.get("action_mask")
        if found is None or not self.discrete:
            return None
        if found.stop - found.start != self.num_actions:
            raise SpaceMismatch(
                f"action_mask has {found.stop - found.start} entries, but there are {self.num_actions} actions."
            )
        return found

    @property
    def goals(self) -> tuple[slice, slice] | None:
        """Where the canonical vector holds the goal achieved and the one desired: the parts of a Dict observation
        named `achieved_goal` and `desired_goal`, as in Gymnasium-Robotics; None where there is none desired.

        Raises:
            SpaceMismatch: unless the desired goal is as long as the achieved one, or a multiple of it: several goals
                to be achieved one after the other.
        """
        names = self.names
        if "desired_goal" not in names:
            return None
        achieved, desired = names.get("achieved_goal", slice(0, 0)), names["desired_goal"]
        size, wanted = achieved.stop - achieved.start, desired.stop - desired.start
        if size == 0 or wanted % size:
            raise SpaceMismatch(
                f"desired_goal has {wanted} entries and achieved_goal {size}; they must be as many, or a multiple."
            )
        return achieved, desired

    @property
    def image(self) -> bool:
        """Whether observations are images [height, width, channels]."""
        return _is_image(self.observation_space)

    @property
    def tabular(self) -> bool:
        """Whether observations are integers."""
        return isinstance(self.observation_space, spaces.Discrete)

    @property
    def obs_size(self) -> int:
        """Features of one observation once it is a vector (one-hot if it is an integer)."""
        return sum(_width(name, space) for name, space in self.leaves)

    @property
    def obs_shape(self) -> tuple[int, ...]:
        """Shape of one canonical observation."""
        if self.tabular:
            return ()
        return tuple(self.observation_space.shape) if self.image else (self.obs_size,)  # type: ignore[arg-type]

    @property
    def obs_dtype(self) -> Any:
        """Type of one canonical observation."""
        if self.tabular:
            return np.dtype(np.int32)
        return self.observation_space.dtype if self.image else np.dtype(np.float32)

    def encode_obs(self, obs: Any) -> Array:
        """One observation of the user's space, in canonical form."""
        if self.tabular:
            return jnp.asarray(obs - int(self.observation_space.start), jnp.int32)  # type: ignore[attr-defined]
        if self.image:
            return jnp.asarray(obs)
        if len(self.leaves) == 1 and not isinstance(self.observation_space, (spaces.Dict, spaces.Tuple)):
            return _vector(self.observation_space, obs)
        return jnp.concatenate([_vector(space, _pick(obs, name)) for name, space in self.leaves])

    # --- actions

    @property
    def discrete(self) -> bool:
        """Whether actions are integers."""
        return isinstance(self.action_space, spaces.Discrete)

    @property
    def multi_discrete(self) -> bool:
        """Whether actions are vectors of integers."""
        return isinstance(self.action_space, spaces.MultiDiscrete)

    @property
    def continuous(self) -> bool:
        """Whether actions are real vectors."""
        return isinstance(self.action_space, spaces.Box)

    @property
    def bounded(self) -> bool:
        """Whether actions are real vectors with finite bounds."""
        return self.continuous and bool(self.action_space.is_bounded("both"))  # type: ignore[attr-defined]

    @property
    def num_actions(self) -> int:
        """Number of discrete actions."""
        self.require("discrete")
        return int(self.action_space.n)  # type: ignore[attr-defined]

    @property
    def action_size(self) -> int:
        """Dimensions of one real action, or of the logits of one discrete action."""
        if self.discrete:
            return self.num_actions
        if self.multi_discrete:
            return int(self.action_space.nvec.sum())  # type: ignore[attr-defined]
        return int(np.prod(self.action_space.shape))  # type: ignore[arg-type]

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one canonical action."""
        if self.discrete:
            return ()
        if self.multi_discrete:
            return (int(np.prod(self.action_space.shape)),)  # type: ignore[arg-type]
        return (self.action_size,)

    @property
    def action_dtype(self) -> Any:
        """Type of one canonical action."""
        return np.dtype(np.float32) if self.continuous else np.dtype(np.int32)

    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        box = self.action_space
        if not self.bounded:
            return np.zeros(self.action_size, np.float32), np.ones(self.action_size, np.float32)
        low, high = box.low.ravel(), box.high.ravel()  # type: ignore[attr-defined]
        return ((high + low) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)

    def encode_action(self, action: Any) -> Array:
        """One action of the user's space, in canonical form."""
        if self.discrete:
            return jnp.asarray(action - int(self.action_space.start), jnp.int32)  # type: ignore[attr-defined]
        if self.multi_discrete:
            return jnp.ravel(jnp.asarray(action - self.action_space.start, jnp.int32))  # type: ignore[attr-defined]
        centre, half = self._affine()
        return (jnp.ravel(jnp.asarray(action, jnp.float32)) - centre) / half

    def decode_action(self, action: Array) -> Array:
        """A canonical action, in the user's space; real actions are clipped to the bounds."""
        space = self.action_space
        if self.discrete:
            return jnp.asarray(action, jnp.int32) + int(space.start)  # type: ignore[attr-defined]
        if self.multi_discrete:
            start = jnp.asarray(space.start, jnp.int32)  # type: ignore[attr-defined]
            return jnp.asarray(action, jnp.int32).reshape(space.shape) + start
        centre, half = self._affine()
        if self.bounded:
            action = jnp.clip(action, -1.0, 1.0)
        return (centre + half * action).reshape(space.shape)

    # --- checks

    def require(self, kind: str, by: str = "this method") -> None:
        """Raises `SpaceMismatch` unless the actions are of `kind`: 'discrete', 'bounded' or 'continuous'."""
        wanted = {"discrete": "Discrete", "bounded": "a bounded Box", "continuous": "Box"}[kind]
        if not getattr(self, kind):
            raise SpaceMismatch(f"{by} needs {wanted} actions, but the action space is {self.action_space}.")

    def require_costs(self, by: str = "this method") -> None:
        """Raises `ConfigError` unless transitions come with costs."""
        if not self.costs:
            raise ConfigError(
                f"{by} keeps costs below a limit, but the world or log reports none: give a world whose "
                'Step.info["cost"] holds them, or a log with a cost column.'
            )

    def require_switches(self, by: str = "this method") -> None:
        """Raises `ConfigError` unless it is declared which entries of an action are on or off."""
        if not self.switches:
            raise ConfigError(
                f"{by} treats entries of an action that are on or off apart, but none is declared: give a world with "
                '`switches`, or a log with meta["switches"].'
            )

    def check_obs(self, obs: Any) -> None:
        """Raises `SpaceMismatch` unless `obs` has the parts and shapes of one observation."""
        for name, space in self.leaves:
            try:
                part = obs if len(self.leaves) == 1 and name == "obs" else _pick(obs, name)
            except (KeyError, IndexError, TypeError):
                raise SpaceMismatch(f"the observation lacks {name!r}; it must fit {self.observation_space}.") from None
            if np.shape(part) != space.shape:
                raise SpaceMismatch(
                    f"{name} has shape {np.shape(part)}, but one observation has {space.shape}; "
                    "for a batch, map over it with jax.vmap."
                )

    def check_same(self, other: Spec, what: str = "the environment") -> None:
        """Raises `SpaceMismatch` unless `other` has the same spaces."""
        for field in ("observation_space", "action_space"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if not _compatible(mine, theirs):
                raise SpaceMismatch(
                    f"{field.replace('_', ' ')} differs: expected {mine}, but {what} has {theirs}. "
                    "Convert one of them, or use the environment the policy was trained for."
                )


def _compatible(a: spaces.Space, b: spaces.Space) -> bool:
    """Same kind and shape; bounds are compared only for actions' sake, to 1e-6."""
    if type(a) is not type(b):
        return False
    if isinstance(a, spaces.Box):
        return a.shape == b.shape and all(
            np.allclose(x, y, atol=1e-6) or not np.isfinite(x).all() or not np.isfinite(y).all()
            for x, y in ((a.low, b.low), (a.high, b.high))  # type: ignore[attr-defined]
        )
    return bool(a == b)


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """A space as plain data; inverse of `space_from_json`."""
    if isinstance(space, spaces.Box):
        return {
            "kind": "Box",
            "low": space.low.astype(float).tolist(),
            "high": space.high.astype(float).tolist(),
            "shape": list(space.shape),
            "dtype": str(space.dtype),
        }
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"kind": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "spaces": {k: space_to_json(v) for k, v in space.spaces.items()}}
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "spaces": [space_to_json(v) for v in space.spaces]}
    raise SpaceMismatch(f"a {type(space).__name__} space cannot be saved.")


def space_from_json(data: dict[str, Any]) -> spaces.Space:
    """A space from the plain data of `space_to_json`."""
    kind = data["kind"]
    if kind == "Box":
        low, high = (np.array(data[k], dtype=float).reshape(data["shape"]) for k in ("low", "high"))
        dtype = np.dtype(data["dtype"])
        return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(data["n"], start=data["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(data["nvec"], start=data["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["n"])
    if kind == "Dict":
        return spaces.Dict({k: space_from_json(v) for k, v in data["spaces"].items()})
    if kind == "Tuple":
        return spaces.Tuple([space_from_json(v) for v in data["spaces"]])
    raise SpaceMismatch(f"unknown space kind {kind!r}.")
