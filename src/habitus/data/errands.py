"""Demonstrations of mixed quality: a controller by hand that does as it is told, or spoils it in a way of its own."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.protocols import Policy
from habitus.core.trees import select
from habitus.data.behaviours import around
from habitus.envs.worlds.planar_pick import TARGETS

FLAWS = ("none", "premature", "wrong", "detour")


class Errand(eqx.Module):
    """What `FollowInstruction` keeps for an episode.

    Attributes:
        flaw: index in `FLAWS`, -1 before the first step.
        side: of the disc on which it passes.
        carries: whether it takes itself to hold the object.
        astray: whether a detour is still ahead of it.
    """

    flaw: Int[Array, ""]
    side: Int[Array, ""]
    carries: Bool[Array, ""]
    astray: Bool[Array, ""]


class FollowInstruction(Policy):
    """Does what `InstructedPick` asks for, on either side of the disc; in some episodes with one of three flaws.

    `premature`: it closes short of the object, and goes on as if it held it. `wrong`: it puts the object on the other
    target. `detour`: it first goes to the corner below, left or right, that is farther from the object. Then it
    stays, so the first two fail. Flaw and side are drawn at the first step of an episode and shown by nothing else.
    """

    flawed: float | Float[Array, ""] = 0.0
    """probability of a flaw, each of the three as likely"""
    speed: float = 0.04
    """of the gripper"""
    detour: float = 0.16
    """how far beside the centre of the disc it passes"""
    short: float = 0.09
    """how near a premature one comes to the object"""

    def init(self) -> Errand:
        """No flaw chosen yet."""
        unknown, no = jnp.full((), -1, jnp.int32), jnp.zeros((), bool)
        return Errand(unknown, unknown, no, no)

    def start(self, key: PRNGKeyArray) -> Errand:
        """The flaw and the side of an episode."""
        some_key, which_key, side_key = jax.random.split(key, 3)
        some = jax.random.bernoulli(some_key, self.flawed)
        flaw = jnp.where(some, jax.random.randint(which_key, (), 1, len(FLAWS)), 0)
        side, no = jax.random.randint(side_key, (), 0, 2), jnp.zeros((), bool)
        return Errand(flaw, side, no, flaw == FLAWS.index("detour"))

    def __call__(self, obs: Float[Array, "21"], carry: Errand, key: PRNGKeyArray) -> tuple[Float[Array, "3"], Errand]:
        errand = select(carry.flaw < 0, self.start(key), carry)
        position, closed, held, objects = obs[:2], obs[2] > 0.5, obs[3:5] > 0.5, obs[5:9].reshape(2, 2)
        own, target = jnp.argmax(obs[17:].reshape(2, 2), 1)
        thing, holding = objects[own], held[own]
        goal = jnp.asarray(TARGETS)[jnp.where(errand.flaw == FLAWS.index("wrong"), 1 - target, target)]
        hasty = errand.flaw == FLAWS.index("premature")
        distance = jnp.linalg.norm(thing - position)

        near = distance < jnp.where(hasty, self.short, 0.03)
        carries = jnp.where(hasty, errand.carries | near, holding)
        offset = jnp.where(holding, thing - position, 0.0)  # what it holds is to arrive, not the gripper
        arrived = jnp.linalg.norm(goal - position - offset) < 0.02
        there = ~carries & (jnp.linalg.norm(goal - thing) < 0.035)  # then it stays
        corner = jnp.stack([-0.4 * jnp.sign(thing[0]), -0.4])
        astray = errand.astray & (jnp.linalg.norm(corner - position) > 0.1)
        aim = jnp.where(carries, goal - offset, jnp.where(there, position, jnp.where(astray, corner, thing)))
        close = jnp.where(carries, ~arrived, near & ~closed & ~there & ~astray)
        move = around(position, aim, errand.side, self.detour, self.speed)
        action = jnp.concatenate([move, jnp.where(close, 1.0, -1.0)[None]])
        return action, Errand(errand.flaw, errand.side, jnp.asarray(hasty & carries), astray)
