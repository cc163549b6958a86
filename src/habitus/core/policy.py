"""From canonical spaces back to the user's: the policy that is handed over, saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.errors import CheckpointError
from habitus.core.protocols import Policy
from habitus.core.spec import Spec, space_from_json, space_to_json
from habitus.core.trees import Metrics


class Deployed(Policy):
    """A policy in the user's own spaces, around one in canonical spaces.

    Attributes:
        policy: what acts, in canonical spaces.
        contract: the spaces, as JSON (text, so that the module is a clean pytree).
    """

    policy: Policy
    contract: str = eqx.field(static=True)

    @classmethod
    def of(cls, policy: Policy, spec: Spec) -> Deployed:
        """Wraps a canonical policy for the spaces of `spec`."""
        spaces = {
            "observation": space_to_json(spec.observation_space),
            "action": space_to_json(spec.action_space),
            "horizon": spec.horizon,
        }
        return cls(policy, json.dumps(spaces))

    @property
    def spec(self) -> Spec:
        """The spaces this policy acts in."""
        data = json.loads(self.contract)
        return Spec(space_from_json(data["observation"]), space_from_json(data["action"]), data["horizon"])

    def init(self) -> Any:
        return self.policy.init()

    def rewarded(self, carry: Any, reward: Float[Array, ""]) -> Any:
        return self.policy.rewarded(carry, reward)

    def report(self, carry: Any) -> Metrics:
        return self.policy.report(carry)

    def __call__(self, obs: Any, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        action, carry = self.policy(self.spec.encode_obs(obs), carry, key)
        return self.spec.decode_action(action), carry

    def act(self, obs: Any, seed: int = 0) -> np.ndarray:
        """One action for one observation, for use outside JAX; a memoryless policy needs no more.

        Raises:
            SpaceMismatch: if `obs` does not fit the observation space.
        """
        return self.session(seed).act(obs)

    def session(self, seed: int = 0) -> Session:
        """Acts through whole episodes outside JAX, remembering what the policy must."""
        return Session(self, seed)

    def save(self, folder: str | Path) -> Path:
        """Writes `policy.json` and `policy.safetensors` into `folder`."""
        from habitus.core.serialise import save_module

        return save_module(self, Path(folder), "policy")

    @classmethod
    def load(cls, folder: str | Path, spec: Spec | None = None) -> Deployed:
        """Reads a saved policy.

        Args:
            spec: if given, the spaces that the policy must have.

        Raises:
            CheckpointError: if the files are missing, damaged, or not of a policy.
            SpaceMismatch: if the spaces differ from `spec`.
        """
        from habitus.core.serialise import load_module

        policy = load_module(Path(folder), "policy", cls)
        try:
            own = policy.spec
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"the spaces in {folder}/policy.json are damaged ({error}); save it again."
            ) from error
        if spec is not None:
            spec.check_same(own, f"the saved policy in {folder}")
        return policy


class Session:
    """A deployed policy on its way through episodes, for use outside JAX: NumPy in, NumPy out.

    Attributes:
        policy: what acts.
        carry: what it remembers of the episode so far.
    """

    def __init__(self, policy: Deployed, seed: int = 0):
        self.policy, self.key, self.tick = policy, jax.random.key(seed), 0
        self.carry: Any = policy.init()

    def act(self, obs: Any) -> np.ndarray:
        """The action for the next observation of the episode.

        Raises:
            SpaceMismatch: if `obs` does not fit the observation space.
        """
        self.policy.spec.check_obs(obs)
        key = self.key if self.tick == 0 else jax.random.fold_in(self.key, self.tick)
        action, self.carry = _act(self.policy, jax.tree.map(jnp.asarray, obs), self.carry, key)
        self.tick += 1
        return np.asarray(action)

    def reward(self, reward: float) -> None:
        """What the last action earned; policies that aim at a return must be told."""
        self.carry = self.policy.rewarded(self.carry, jnp.asarray(reward, jnp.float32))

    def report(self) -> dict[str, float]:
        """What the policy says of the episode so far, such as the `staleness` of its plan in steps."""
        return {name: float(value) for name, value in self.policy.report(self.carry).items()}

    def reset(self) -> None:
        """A new episode begins."""
        self.carry = self.policy.init()


@eqx.filter_jit
def _act(policy: Deployed, obs: Any, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
    return policy(obs, carry, key)
