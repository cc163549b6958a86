"""What every side of a comparison shares: the settings of each work, the clock, the line it prints.

Imported in the environments of the peers, so nothing but the standard library at the top.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

LOADED = time.time()

ENV_STEPS = "env steps/s"
UPDATES = "updates/s"


@dataclasses.dataclass(frozen=True)
class PPOSettings:
    """PPO on CartPole: one round is `envs * steps` environment steps and `epochs` passes over them."""

    envs: int = 8
    steps: int = 128
    epochs: int = 4
    batch: int = 256
    hidden: tuple[int, int] = (64, 64)
    learning_rate: float = 3e-4
    discount: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    value: float = 0.5
    max_grad_norm: float = 0.5

    @property
    def round(self) -> int:
        """Environment steps between two rounds of learning."""
        return self.envs * self.steps


@dataclasses.dataclass(frozen=True)
class OffPolicySettings:
    """SAC, TD3+BC and IQL: two critics and an actor of 256-256, one gradient step an update."""

    batch: int = 256
    hidden: tuple[int, int] = (256, 256)
    learning_rate: float = 3e-4
    discount: float = 0.99
    tau: float = 0.005
    # Steps of random actions before SAC's first update; never measured.
    random_steps: int = 300


@dataclasses.dataclass(frozen=True)
class LogSettings:
    """A log of random transitions in the shape of D4RL's HalfCheetah."""

    transitions: int = 200_000
    episode: int = 1_000
    obs: int = 17
    action: int = 6
    seed: int = 10


PPO = PPOSettings()
OFF_POLICY = OffPolicySettings()
LOG = LogSettings()


@dataclasses.dataclass(frozen=True)
class Rate:
    """How fast a side went once everything was compiled and warm.

    Attributes:
        rate: `amount / seconds`.
        unit: `ENV_STEPS` or `UPDATES`.
        seconds: length of the measured part.
    """

    rate: float
    unit: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Start:
    """How long until something happens, in seconds.

    Attributes:
        import_s: the import statement alone.
        first_update_s: from the start of the command to the end of the first round of PPO.
        cached_s: the same with a filled compile cache, where the side has one.
    """

    import_s: float
    first_update_s: float
    cached_s: float | None = None
    unit: str = "s"


Work = Callable[[argparse.Namespace], Rate | Start]


def timed(amount: int, unit: str, work: Callable[[], Any]) -> Rate:
    """Runs `work`, which does `amount` of `unit` and returns only when all of it is done."""
    begin = time.perf_counter()
    work()
    seconds = time.perf_counter() - begin
    return Rate(amount / seconds, unit, seconds)


def scaled(amount: int, args: argparse.Namespace, multiple: int = 1) -> int:
    """`amount * --scale`, rounded up to a multiple."""
    return max(1, -(-int(amount * args.scale) // multiple)) * multiple


def random_log() -> dict[str, np.ndarray]:
    """Observations [n, 17], actions [n, 6] in [-1, 1], rewards [n], and episode ends [n] every 1,000 rows."""
    import numpy as np

    rng = np.random.default_rng(LOG.seed)
    ends = np.arange(1, LOG.transitions + 1) % LOG.episode == 0
    return {
        "obs": rng.standard_normal((LOG.transitions, LOG.obs), dtype=np.float32),
        "action": rng.uniform(-1, 1, (LOG.transitions, LOG.action)).astype(np.float32),
        "reward": rng.standard_normal(LOG.transitions, dtype=np.float32),
        "ends": ends,
    }


def main(works: Mapping[str, Work], packages: Sequence[str]) -> None:
    """Runs the work named on the command line and prints one line of JSON about it.

    Args:
        works: what this side can do, by name.
        packages: distributions whose versions belong in the table.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=sorted(works))
    parser.add_argument("--scale", type=float, default=1.0, help="length of the measured part, 1 = several seconds")
    parser.add_argument("--started", type=float, default=LOADED, help="when the command was started, as time.time()")
    args = parser.parse_args()
    result = dataclasses.asdict(works[args.work](args))
    versions = {name: metadata.version(name) for name in packages}
    print(json.dumps({"work": args.work, **result, "versions": versions}), flush=True)
