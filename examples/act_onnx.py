"""Acts in a Gymnasium environment with an exported policy: onnxruntime and NumPy, neither JAX nor habitus.

    habitus export runs/mine --to onnx --out policy
    python examples/act_onnx.py policy Pendulum-v1

`OnnxPolicy` is all that a robot needs; copy it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import onnxruntime


class OnnxPolicy:
    """An exported policy on its way through episodes."""

    def __init__(self, folder: Path, seed: int = 0):
        manifest = json.loads((folder / "manifest.json").read_text())
        self.programs = manifest["programs"]
        self.sessions = {
            name: onnxruntime.InferenceSession(folder / program["file"], providers=["CPUExecutionProvider"])
            for name, program in self.programs.items()
        }
        self.first = read_arrays(folder / manifest["carry"])
        self.rng = np.random.default_rng(seed)
        self.reset()

    def reset(self) -> None:
        """A new episode begins."""
        self.carry = dict(self.first)

    def act(self, obs: Any) -> np.ndarray:
        """The action for the next observation of the episode."""
        return self._run("act", obs=obs, seed=self.rng.integers(0, 2**32, 2))["action"]

    def reward(self, reward: float) -> None:
        """What the last action earned, for policies that listen."""
        if "rewarded" in self.programs:
            self._run("rewarded", reward=reward)

    def _run(self, name: str, **given: Any) -> dict[str, np.ndarray]:
        program, feeds = self.programs[name], {}
        for slot in program["inputs"]:
            kind = slot["name"].partition(".")[0]
            value = self.carry[slot["name"]] if kind == "carry" else given[kind]
            if kind != "carry":
                for step in slot["path"]:  # into a Dict or Tuple observation
                    value = value[step]
            feeds[slot["name"]] = np.asarray(value, slot["dtype"]).reshape(slot["shape"])
        names = [slot["name"] for slot in program["outputs"]]
        found = dict(zip(names, self.sessions[name].run(names, feeds), strict=True))
        # the output next.x is the input carry.x of the next step
        self.carry = {name.replace("next", "carry", 1): x for name, x in found.items() if name != "action"}
        return found


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """A safetensors file: the length of a JSON header, the header, the bytes."""
    kinds = {"F32": "<f4", "I32": "<i4", "U32": "<u4", "U8": "u1", "I8": "i1", "BOOL": "?"}
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    return {
        name: np.frombuffer(data[start:][slice(*entry["data_offsets"])], kinds[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def main() -> None:
    """Some episodes, and what they earned."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("policy", type=Path, help="what `habitus export --to onnx` wrote")
    parser.add_argument("env", help="a Gymnasium id, such as Pendulum-v1")
    parser.add_argument("--episodes", type=int, default=3)
    args = parser.parse_args()
    env, policy = gymnasium.make(args.env), OnnxPolicy(args.policy)
    for episode in range(args.episodes):
        obs, _ = env.reset(seed=episode)
        policy.reset()
        total, done = 0.0, False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(policy.act(obs))
            policy.reward(float(reward))
            total, done = total + float(reward), terminated or truncated
        print(f"episode {episode}: {total:.1f}")


if __name__ == "__main__":
    main()
