"""What is compared with what, and the ratios to reach on two idle cores. Standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

HABITUS = "habitus"


@dataclasses.dataclass(frozen=True)
class Rival:
    """One side that habitus is measured against.

    Attributes:
        peer: a folder of `peers/`, or `HABITUS` itself.
        work: what the peer runs.
        target: the ratio of rates, habitus to peer, to reach; None if none was set.
    """

    peer: str
    work: str
    target: float | None = None

    @property
    def side(self) -> tuple[str, str]:
        """What to run."""
        return self.peer, self.work


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A work of habitus and those who do the same.

    Attributes:
        work: name of the work on habitus' side.
        title: the work in words, for the table.
        rivals: in the order of the table.
        limits: for works that are timed rather than rated: the most seconds for each measure.
    """

    work: str
    title: str
    rivals: tuple[Rival, ...]
    limits: tuple[tuple[str, float], ...] = ()

    def sides(self, peers: list[str] | None) -> Iterator[tuple[str, str]]:
        """What one round runs, in turn; `peers` keeps only those rivals."""
        yield HABITUS, self.work
        for rival in self.rivals:
            if peers is None or rival.peer in peers:
                yield rival.side


CARTPOLE = "8 environments x 128 steps, 4 epochs, batch 256, 64-64"
LOGGED = "200,000 transitions, obs 17, action 6, batch 256, 256-256"

COMPARISONS = {
    comparison.work: comparison
    for comparison in (
        Comparison(
            "ppo-cartpole",
            f"PPO, CartPole compiled with the loop ({CARTPOLE})",
            (
                Rival("rejax", "ppo-cartpole", 1.2),
                Rival("sb3", "ppo-gym-cartpole", 16.0),
                Rival("sbx", "ppo-gym-cartpole"),
            ),
        ),
        Comparison(
            "mdpo-cartpole",
            f"MDPO, CartPole compiled with the loop, against PPO ({CARTPOLE})",
            (Rival("rejax", "ppo-cartpole", 1.2), Rival("sb3", "ppo-gym-cartpole", 16.0)),
        ),
        Comparison(
            "ppo-gym-cartpole",
            f"PPO, Gymnasium's CartPole on the host ({CARTPOLE})",
            (Rival("sb3", "ppo-gym-cartpole", 1.3), Rival("sbx", "ppo-gym-cartpole")),
        ),
        Comparison(
            "sac-hopper",
            "SAC, Gymnasium's Hopper-v5 (one update a step, batch 256, 256-256)",
            (Rival("sbx", "sac-hopper", 1.2), Rival("sb3", "sac-hopper", 2.3), Rival("d3rlpy", "sac-hopper")),
        ),
        Comparison("td3bc", f"TD3+BC ({LOGGED})", (Rival("d3rlpy", "td3bc", 5.0),)),
        Comparison("iql", f"IQL ({LOGGED})", (Rival("d3rlpy", "iql", 6.0),)),
        Comparison("td3bc-4seeds", "TD3+BC, 4 seeds at once, against one", (Rival(HABITUS, "td3bc", 1.15),)),
        Comparison("td3bc-5seeds", "TD3+BC, 5 seeds at once, against one", (Rival(HABITUS, "td3bc", 1.163),)),
        Comparison(
            "start",
            "import, and first round of PPO on CartPole after the command starts",
            (Rival("sb3", "start"), Rival("sbx", "start")),
            limits=(("import_s", 0.3), ("first_update_s", 4.0), ("cached_s", 2.5)),
        ),
    )
}
