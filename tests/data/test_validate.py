"""Every defect of values is found, with its rows and what to do."""

import dataclasses
import warnings

import numpy as np
import pytest

from habitus.data import canonical, validate
from habitus.data.dataset import Dataset
from habitus.data.validate import check

from .logs import KINDS, log


def changed(data, **columns):
    """The same log with some columns replaced, unchecked."""
    return dataclasses.replace(data, **columns)


def only(data, severity="error"):
    """The one defect of a log."""
    found = check(data)
    assert len(found) == 1 and found[0].severity == severity, found
    return found[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_log_has_no_defect(kind):
    assert check(log(kind, lengths=(50, 40, 30))) == []


def test_rows_are_named_and_counted():
    data = log(lengths=(20, 20, 20))
    reward = data.reward.copy()
    reward[7:30] = np.nan
    defect = only(changed(data, reward=reward))
    assert defect.field == "reward" and defect.rows == (7, 8, 9, 10, 11) and defect.count == 23
    assert str(defect) == (
        "reward holds NaN or Inf (rows 7, 8, 9, 10, 11 and 18 more); remove the episodes of these rows"
    )


def test_parts_of_observations_are_named():
    data = log("dict", lengths=(20, 20, 20))
    arm = {"goal": data.obs["arm"]["goal"].copy(), "at": data.obs["arm"]["at"].copy()}
    arm["at"][3] = np.inf
    found = check(changed(data, obs=data.obs | {"arm": arm}))
    assert [(d.field, d.rows, d.severity) for d in found] == [
        ("obs.arm.at", (3,), "error"),
        ("next_obs", (2,), "warning"),
    ]
    arm["at"][3], arm["goal"][5] = 0, 9
    assert check(changed(data, obs=data.obs | {"arm": arm}))[0].field == "obs.arm.goal"


def test_integers_outside_their_space():
    data = log("discrete", lengths=(20, 20, 20))
    action = data.action.copy()
    action[[4, 9]] = 4, 0
    defect = only(changed(data, action=action))
    assert defect.rows == (4, 9) and "Discrete(3, start=1)" in defect.what
    assert only(changed(log("multi-discrete"), action=log("multi-discrete").action + 2)).field == "action"


def test_constant_columns_are_a_warning():
    data = log(lengths=(20, 20, 20))
    action = data.action.copy()
    action[:, 1] = 0.5
    assert "never changes in dimensions [1]" in only(changed(data, action=action), "warning").what
    assert only(changed(data, reward=np.ones_like(data.reward)), "warning").field == "reward"


def test_successors_that_do_not_follow():
    data = log(lengths=(20, 30, 20))
    next_obs = data.next_obs.copy()
    next_obs[11] += 1
    defect = only(changed(data, next_obs=next_obs), "warning")
    assert defect.rows == (11,) and defect.remedy == "rows may be shuffled or missing"


def test_flags_shifted_by_a_row():
    data = log(lengths=(20, 30, 20), ends="tTt")
    shifted = {name: np.roll(getattr(data, name), 1) for name in ("terminated", "truncated")}
    starts = np.array([0, 1, 21, 51])
    defect = only(changed(data, **shifted, starts=starts), "warning")
    assert defect.rows == (19, 49) and defect.remedy == "the flags may be shifted by a row"


def test_final_observations_lost_to_resets():
    data = log(lengths=(20, 30, 20), ends="TTT")
    next_obs = np.roll(data.obs, -1, axis=0)
    defect = only(changed(data, next_obs=next_obs), "warning")
    assert defect.rows == (19, 49) and "lost to resets" in defect.what


def test_time_outs_given_as_terminations():
    data = log(lengths=(20, 20, 20), ends="TTT")
    swapped = changed(data, terminated=data.truncated, truncated=data.terminated)
    assert "after 20 steps, and nothing is truncated" in only(swapped, "warning").what


@pytest.mark.filterwarnings("ignore:.*one unfinished episode")
def test_one_unfinished_episode_is_a_warning():
    data = log(lengths=(60,), ends=".")
    assert "one unfinished episode" in only(data, "warning").what


def test_rows_are_found_across_chunks(monkeypatch):
    for module in (canonical, validate):
        monkeypatch.setattr(module, "CHUNK", 7)
    data = log(lengths=(20, 20, 20))
    assert check(data) == []
    reward, next_obs = data.reward.copy(), data.next_obs.copy()
    reward[[6, 7, 45]] = np.inf
    next_obs[[6, 13]] += 1
    found = check(changed(data, reward=reward, next_obs=next_obs))
    assert [d.rows for d in found] == [(6, 7, 45), (6, 13)]


def test_warnings_are_given_and_do_not_stop():
    arrays = {name: getattr(log(), name) for name in ("obs", "action", "terminated", "truncated", "next_obs")}
    with pytest.warns(UserWarning, match="the data set: reward never changes; drop it"):
        Dataset.from_arrays(**arrays, reward=np.ones(15))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Dataset.from_arrays(**arrays, reward=np.ones(15), validate=False)
