"""Standard sets that take training: killed and gone on with, complete, and described."""

from __future__ import annotations

import json

import numpy as np
import pytest

from habitus.core.errors import UnknownName
from habitus.measure.standard_sets import describe_sets, table
from habitus.train import standard
from habitus.train.engine import HostEngine

PLAN = standard.Task("Pendulum-v1", steps=120, size=450, warmup=40, check_every=20, save_every=40)


class Killed(BaseException):
    """As if the process had ended."""


def test_a_kill_costs_no_more_than_what_followed_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("HABITUS_CACHE", str(tmp_path))
    monkeypatch.setitem(standard.TASKS, "tiny", PLAN)
    monkeypatch.setattr(standard, "CHECK_EPISODES", 1)
    advanced, rolled = [], []
    advance, roll_out = HostEngine.advance, standard._roll_out

    def counted(engine, draws):
        if len(advanced) == 3:
            advanced.append("killed")
            raise Killed
        advanced.append(int(engine.update))
        return advance(engine, draws)

    def rolling(*arguments):
        if arguments[3] == "medium" and "killed" not in rolled:
            rolled.append("killed")
            raise Killed
        rolled.append(arguments[3])
        return roll_out(*arguments)

    monkeypatch.setattr(HostEngine, "advance", counted)
    monkeypatch.setattr(standard, "_roll_out", rolling)
    for _ in range(2):
        with pytest.raises(Killed):
            standard.make_offline("tiny", "medium")
    assert not standard.is_made("tiny", "medium")
    log = standard.make_offline("tiny", "medium")
    assert advanced == [0, 20, 40, "killed", 40, 60], "it went on from the checkpoint after 40 draws"
    assert rolled == ["random", "killed", "medium", "expert"], "the random split was kept"
    assert len(log) == PLAN.size and [step for step, _ in log.meta["learning_curve"]] == [60, 80, 100, 120]
    assert not list((tmp_path / "datasets").glob("*.making"))
    check_splits(tmp_path)


def check_splits(folder):
    logs = {split: standard.make_offline("tiny", split) for split in standard.SPLITS}
    ends = {(log.meta["random_return"], log.meta["expert_return"]) for log in logs.values()}
    assert ends == {tuple(float(logs[s].returns.mean()) for s in ("random", "expert"))}
    replay = logs["medium-replay"]
    assert replay.lengths.max() <= 200 and 60 <= len(replay) <= 120
    np.testing.assert_array_equal(replay.next_obs[:-1][np.diff(replay.episode_of(np.arange(len(replay)))) == 0],
                                  replay.obs[1:][np.diff(replay.episode_of(np.arange(len(replay)))) == 0])  # fmt: skip
    assert len(logs["medium-expert"]) == 2 * PLAN.size
    found = describe_sets(["tiny"], folder)
    assert json.loads((folder / "standard-sets.json").read_text())["sets"] == found["sets"]
    rows = {row["name"]: row for row in found["sets"]}
    assert set(rows) == {f"tiny-{split}" for split in standard.SPLITS} and not found["not made"]
    assert rows["tiny-medium"]["rows"] == PLAN.size and rows["tiny-medium-replay"]["SACo"] == 1.0
    assert rows["tiny-expert"]["TQ"] == pytest.approx(1.0, abs=0.5)
    for row in found["sets"]:
        assert f"| `{row['name']}` | {row['rows']:,} |" in table(found)


def test_what_is_not_made_is_said_and_not_made(tmp_path, monkeypatch):
    monkeypatch.setenv("HABITUS_CACHE", str(tmp_path))
    found = describe_sets(["walker2d"])
    assert found["sets"] == [] and found["not made"] == [f"walker2d-{split}" for split in standard.SPLITS]
    with pytest.raises(UnknownName, match="walker2d"):
        describe_sets(["walker3d"])
