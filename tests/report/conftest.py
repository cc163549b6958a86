"""Run folders as `learn` writes them, made up in a moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest

from habitus.core.policy import Deployed
from habitus.envs.registry import make
from habitus.nets.policies import Deterministic

STEPS = 20_000


def write_run(
    folder: Path,
    method: str = "td3bc",
    env: str | None = "pendulum",
    seeds: Sequence[int] = (0, 1, 2, 3),
    *,
    end: float = -150.0,
    evaluations: int = 5,
    points: int = 20,
    together: bool = True,
    kind: str = "DatasetSource",
    success: bool = False,
    policies: bool = False,
    **config: Any,
) -> Path:
    """A run folder with plausible curves that end near a return of `end`.

    Args:
        together: whether the seeds share each row, as compiled ones do, or follow each other.
        policies: whether to save a policy (an untrained one) of each seed.
    """
    rng = np.random.default_rng(len(method) + 7 * len(seeds))
    folder.mkdir(parents=True)
    whole = {
        "method": method,
        "hyperparameters": {"learning_rate": 3e-4, "alpha": 2.5, "hidden": [256, 256]},
        "source": {"kind": kind, "batch_size": 256},
        "env": env,
        "steps": STEPS,
        "seeds": list(seeds),
        "command": f"habitus learn {method}",
        "started": "2025-01-31T12:00:00+00:00",
    }
    versions = {
        "python": "3.11.7",
        "platform": "Linux-6.1-x86_64",
        "jax": "0.10.0",
        "git": {"commit": "a" * 40, "changed": True},
    }
    (folder / "config.json").write_text(json.dumps(whole | config))
    (folder / "versions.json").write_text(json.dumps(versions))
    groups = [list(seeds)] if together else [[seed] for seed in seeds]
    metrics, judged = [], []
    for group in groups:
        skill = rng.normal(0, 12, len(group))
        for i in range(1, points + 1):
            done = i / points
            values = {
                "critic/loss": (40 * np.exp(-6 * done) + rng.exponential(0.08, len(group))).tolist(),
                "actor/loss": (-done * 2 + rng.normal(0, 0.1, len(group))).tolist(),
                "episode/return": [float("nan")] * len(group)
                if i == 1
                else (-1200 * (1 - done) + end + skill).tolist(),
            }
            row = {"step": round(STEPS * done), "update": round(STEPS * done), "seeds": group}
            metrics.append(row | {"seconds": 3.0 * done, "metrics": values})
            if evaluations and i % (points // evaluations) == 0:
                centre = end - 1000 * np.exp(-5 * done) + skill
                judged.append(
                    row
                    | {
                        "returns": [(c + rng.normal(0, 30, 5)).tolist() for c in centre],
                        "lengths": [[200] * 5 for _ in group],
                        "success": [rng.random(5) < done if success else None for _ in group],
                    }
                )
    for name, rows in (("metrics", metrics), ("evaluations", judged)):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row, default=np.ndarray.tolist) + "\n" for row in rows)
        )
    if policies:
        for seed in seeds:
            write_policy(folder / "policy" / f"seed-{seed}", str(env), seed)
    return folder


def write_policy(folder: Path, world: str, seed: int = 0) -> Path:
    """An untrained policy with real actions."""
    spec = make(world).spec
    actor = eqx.nn.Linear(spec.obs_size, spec.action_size, key=jax.random.key(seed))
    return Deployed.of(Deterministic(actor), spec).save(folder)


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run folder: `run_folder(name, **settings)`."""
    return lambda name="run", **settings: write_run(tmp_path / name, **settings)


@pytest.fixture
def save_policy(tmp_path: Path) -> Callable[..., Path]:
    """Saves an untrained policy for a world: `save_policy(world)`."""
    return lambda world, seed=0: write_policy(tmp_path / f"policy-{world}-{seed}", world, seed)
