"""The card of a data set."""

import numpy as np
import pytest

from habitus.data.dataset import Dataset
from habitus.data.inspect import inspect
from habitus.data.maker import make_offline
from habitus.data.measures import state_action_coverage

from .logs import KINDS, log


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HABITUS_CACHE", str(tmp_path_factory.getbasetemp() / "standard"))


def test_numbers_are_those_of_the_log():
    data = log(lengths=(50, 30, 40), ends="tT.")
    card = inspect(data)
    assert (card.steps, card.episodes, card.complete, card.bytes) == (120, 3, 2, data.nbytes)
    assert card.terminated == 0.5
    assert card.mean_return == pytest.approx(data.returns[:2].mean())
    assert card.returns == pytest.approx(np.quantile(data.returns[:2], [0, 0.25, 0.5, 0.75, 1]))
    assert (card.lengths[0], card.lengths[2], card.lengths[4]) == (30, 40, 50)
    assert card.trajectory_quality == pytest.approx((card.mean_return + 1) / 3.5)
    assert card.coverage is None and card.defects == ()
    assert [f.name for f in card.features] == ["obs[0]", "obs[1]", "obs[2]", "action[0]", "action[1]"]
    action = card.features[3]
    assert (action.low, action.high) == (data.action[:, 0].min(), data.action[:, 0].max())
    assert action.std == pytest.approx(data.action[:, 0].std(), rel=1e-5)


def test_saturated_actions_are_counted():
    data = log(lengths=(50, 30, 40))
    action = np.clip(data.action, -1.9, 2.9)
    action[:30, 0], action[30:36, 0] = 3.0, -2.0
    arrays = {name: getattr(data, name) for name in ("obs", "reward", "terminated", "truncated", "next_obs")}
    card = inspect(Dataset.from_arrays(**arrays, action=action, action_space=data.action_space))
    assert card.features[3].saturated == pytest.approx(0.3) and card.features[4].saturated == 0
    assert card.saturation == pytest.approx(0.15)


def test_standard_sets_are_compared_with_their_replay():
    data, replay = (make_offline("pendulum", split, size=2_000) for split in ("expert", "replay"))
    card = inspect(data)
    assert card.coverage == pytest.approx(state_action_coverage(data, replay))
    assert card.coverage < 0.5 and card.trajectory_quality == pytest.approx(1, abs=0.15)
    assert inspect(replay).coverage == 1
    assert inspect(data, reference=data).coverage == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_log_has_rows_to_print(kind):
    card = inspect(log(kind, lengths=(50, 30, 40)))
    rows = dict(card.rows())
    assert rows["steps"] == "120 in 3 episodes, 2 complete" and rows["defects"] == "none found"
    assert all(isinstance(text, str) and text for row in card.rows() for text in row)
    if kind == "discrete":
        assert sum(card.action_shares) == pytest.approx(1) and len(card.action_shares) == 3
    if kind == "dict":
        assert [f.name for f in card.features][:6] == [
            "arm.at[0]",
            "arm.at[1]",
            "arm.at[2]",
            "arm.goal[0]",
            "arm.goal[1]",
            "arm.goal[2]",
        ]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_defects_are_rows():
    data = log(lengths=(50, 30, 40))
    data.reward[:] = 1.0
    assert ("warning", "reward never changes; drop it, or check how it was recorded") in inspect(data).rows()
    assert dict(inspect(log(lengths=(9,), ends=".")).rows()).get("return") is None
