"""SBX's side: `run.py WORK` prints one line of JSON."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[level]) for level in (1, 2)]

from side import main  # noqa: E402
from stable_baselines import works  # noqa: E402

if __name__ == "__main__":
    main(works("sbx"), packages=("sbx-rl", "stable-baselines3", "jax", "gymnasium", "mujoco"))
