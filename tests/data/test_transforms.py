"""Transforms of demonstrations (reversal, hindsight, phrases of motions): on tiny logs, and what always holds."""

import dataclasses

import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError, DataError
from habitus.data.dataset import Dataset
from habitus.data.hindsight import Goals, relabel_goals
from habitus.data.parts import with_parts
from habitus.data.phrases import ARM, Vocabulary, label_motions
from habitus.data.reversal import negated, reached, reversed_episodes
from habitus.data.validate import check

from .logs import log


def walks(lengths=(4, 1, 3), seed=0):
    """Positions [x, y] and a gripper, moved by displacements; every episode lives near 100 times its number."""
    rng = np.random.default_rng(seed)
    columns = {name: [] for name in ("obs", "next_obs", "action", "truncated")}
    for episode, length in enumerate(lengths):
        moves = rng.integers(-4, 5, (length, 2)) / 8  # sums of them are exact
        path = np.cumsum(np.vstack([[100.0 * (episode + 1)] * 2, moves]), 0)
        grip = rng.integers(0, 2, length + 1)
        states = np.column_stack([path, grip]).astype(np.float32)
        columns["obs"].append(states[:-1])
        columns["next_obs"].append(states[1:])
        columns["action"].append(np.column_stack([moves, 2 * grip[1:] - 1]).astype(np.float32))
        columns["truncated"].append(np.arange(length) == length - 1)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    rows = len(joined["obs"])
    return Dataset.from_arrays(
        **joined, reward=np.arange(rows, dtype=np.float32), terminated=np.zeros(rows, bool), cost=np.ones((rows, 1)),
        action_space=spaces.Box(-1, 1, (3,)), validate=False,
    )  # fmt: skip


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in (*a.columns, "starts"))


def back(dimensions=(0, 1)):
    """Moves are negated, and the gripper is told to be as it was."""
    moves, grip = negated(dimensions), reached(lambda obs: 2 * obs[:, 2:] - 1, [2])
    return lambda obs, action, next_obs: grip(obs, moves(obs, action, next_obs), next_obs)


# --- reversal


def test_the_reverse_of_a_tiny_log():
    states = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], np.float32) / 2
    action = np.array([[0.5, 0, -1], [0, 0.5, 1], [0, 0, -1]], np.float32)
    states[:, 2] = [0, 0, 1, 0]
    given = Dataset.from_arrays(
        obs=states[:-1], next_obs=states[1:], action=action, reward=np.array([1, 2, 3]), validate=False,
        terminated=np.array([False, False, True]), action_space=spaces.Box(-1, 1, (3,)),
    )  # fmt: skip
    found = reversed_episodes(given, back())
    assert found.obs.tolist() == states[:0:-1].tolist() and found.next_obs.tolist() == states[-2::-1].tolist()
    # the gripper closed in the second step, so it opens in the second of the reverse; and closes where it had opened
    assert found.action.tolist() == [[0, 0, 1], [0, -0.5, -1], [-0.5, 0, -1]]
    assert found.reward.tolist() == [3, 2, 1]
    assert not found.terminated.any() and found.truncated.tolist() == [False, False, True]


def test_reversed_twice_it_is_the_log_again():
    given = walks()
    once = reversed_episodes(given, back())
    assert not same(once, given) and same(reversed_episodes(once, back()), given)
    assert [d for d in check(once) if d.severity == "error"] == []


def test_replaying_the_reversed_displacements_leads_back_to_the_start():
    given, found = walks(), reversed_episodes(walks(), back())
    for i in range(len(given.starts)):
        there, again = given.episode(i), found.episode(i)
        end = np.asarray(there.next_obs)[-1, :2]
        np.testing.assert_allclose(
            end + np.asarray(again.action)[:, :2].sum(0), np.asarray(there.obs)[0, :2], atol=1e-6
        )


def test_rows_stay_in_their_episode():
    for changed in (
        reversed_episodes(walks(), back()),
        relabel_goals(at(), paid, {"future": 0.5, "final": 0.5}, GOALS),
    ):
        number = np.round(np.asarray(changed.obs) / 100)[:, :2]
        assert (number == np.repeat([[1], [2], [3]], (4, 1, 3), 0)).all()


def test_reversal_of_every_kind_of_observation():
    for kind in ("box", "discrete", "image", "dict", "tuple"):
        given = log(kind, ends="TTT")
        twice = reversed_episodes(reversed_episodes(given, lambda o, a, n: a), lambda o, a, n: a)
        for name in ("obs", "next_obs", "action", "reward"):
            np.testing.assert_equal(getattr(twice, name), getattr(given, name))


def test_a_reward_for_the_reverse_is_computed():
    found = reversed_episodes(walks(), back(), reward=lambda obs, action, next_obs: next_obs[:, 0] - obs[:, 0])
    np.testing.assert_array_equal(found.reward, found.next_obs[:, 0] - found.obs[:, 0])


def test_actions_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"row 1 of the reversed log lies outside"):
        reversed_episodes(walks(), lambda o, a, n: a + 9 * (np.arange(len(a)) == 1)[:, None])
    with pytest.raises(DataError, match="shape"):
        reversed_episodes(walks(), lambda o, a, n: a[:, :1])


# --- hindsight


GOALS = Goals.columns(achieved=[0], desired=[2])


def paid(achieved, desired):
    return (achieved == desired).all(-1) - 1.0


def at(lengths=(4, 1, 3)):
    """As `walks`, with the goal in the last column: never reached."""
    given = walks(lengths)
    obs, next_obs = given.obs.copy(), given.next_obs.copy()
    obs[:, 2] = next_obs[:, 2] = -7
    return dataclasses.replace(given, obs=obs, next_obs=next_obs, reward=np.full(len(given), -1, np.float32))


def test_final_gives_each_episode_the_goal_it_reached():
    given = at()
    found = relabel_goals(given, paid, {"final": 1.0}, GOALS)
    last = given.next_obs[given.ends, 0]
    np.testing.assert_array_equal(found.obs[:, 2], np.repeat(last, given.lengths))
    np.testing.assert_array_equal(found.next_obs[:, 2], np.repeat(last, given.lengths))
    assert (found.reward[given.ends] == 0).all()
    np.testing.assert_array_equal(found.obs[:, :2], given.obs[:, :2])
    np.testing.assert_array_equal(found.action, given.action)


def test_future_takes_what_this_row_or_a_later_one_achieved():
    given, seen = at((6, 5)), [set() for _ in range(11)]
    for seed in range(60):
        goal = relabel_goals(given, paid, {"future": 1.0}, GOALS, seed=seed).obs[:, 2]
        for row in range(11):
            seen[row].add(float(goal[row]))
    for row in range(11):
        end = 6 if row < 6 else 11
        assert seen[row] == set(given.next_obs[row:end, 0].tolist())


@pytest.mark.parametrize("shares", [{}, {"future": 0.8}, {"final": 0.3, "future": 0.3, "random": 0.4}, {"random": 1.0}])
def test_rewards_are_those_of_the_goals(shares):
    given = at((30, 40, 50))
    found = relabel_goals(given, paid, shares, GOALS, seed=3)
    np.testing.assert_array_equal(found.reward, paid(GOALS.achieved(found.next_obs), GOALS.desired(found.obs)))
    assert (found.obs[:, 2] != -7).mean() == pytest.approx(sum(shares.values()), abs=0.12)
    assert same(found, given) == (not shares)
    assert same(found, relabel_goals(given, paid, shares, GOALS, seed=3))


def test_random_goals_come_from_the_whole_log():
    goal = relabel_goals(at((30, 30)), paid, {"random": 1.0}, GOALS).obs[:, 2]
    assert set(np.round(goal[:30] / 100)) == {1.0, 2.0}


def test_reaching_the_new_goal_ends_the_episode_and_missing_it_does_not():
    given = at((4,))
    states = np.array([[100, 0, -7], [101, 0, -7], [102, 0, -7], [101, 0, -7], [102, 0, -7]], np.float32)
    ended = dataclasses.replace(given, obs=states[:-1], next_obs=states[1:], terminated=given.truncated)
    found = relabel_goals(ended, paid, {"final": 1.0}, GOALS, terminates=lambda a, d: (a == d).all(-1))
    assert found.terminated.tolist() == [False, True, False, True] and found.starts.tolist() == [0, 2]
    assert found.reward.tolist() == [-1, 0, -1, 0]
    never = relabel_goals(ended, paid, {"final": 1.0}, GOALS, terminates=lambda a, d: np.zeros(len(a)))
    assert not never.terminated.any() and never.truncated.tolist() == [False, False, False, True]
    assert [d for d in check(found) if d.severity == "error"] == []


def test_goals_in_parts_of_the_observation():
    given = walks()
    obs, next_obs = (
        {"observation": o, "achieved_goal": o[:, :2], "desired_goal": 0 * o[:, :2]} for o in (given.obs, given.next_obs)
    )
    box = spaces.Box(-np.inf, np.inf, (2,))
    space = spaces.Dict({"observation": given.observation_space, "achieved_goal": box, "desired_goal": box})
    given = dataclasses.replace(given, obs=obs, next_obs=next_obs, observation_space=space)
    found = relabel_goals(given, paid, {"final": 1.0})
    np.testing.assert_array_equal(
        found.obs["desired_goal"], np.repeat(next_obs["achieved_goal"][given.ends], given.lengths, 0)
    )
    assert (obs["desired_goal"] == 0).all() and (found.reward[given.ends] == 0).all()


def test_what_hindsight_refuses():
    with pytest.raises(ConfigError, match="no strategy"):
        relabel_goals(at(), paid, {"past": 1.0}, GOALS)
    with pytest.raises(ConfigError, match="probabilities"):
        relabel_goals(at(), paid, {"final": 0.7, "future": 0.7}, GOALS)
    with pytest.raises(DataError, match="no part 'achieved_goal'"):
        relabel_goals(at(), paid, {"final": 1.0})
    with pytest.raises(DataError, match="one number a row"):
        relabel_goals(at(), lambda a, d: a == d, {"final": 1.0}, GOALS)
    with pytest.raises(ConfigError, match="as many features"):
        Goals.columns([0, 1], [2])


# --- phrases


PLANE = Vocabulary((("right", "left"), ("up", "down"), ("close gripper", "open gripper")))


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ((0.9, 0, 0), "right"),
        ((0.5, 0.9, 0), "up and right"),
        ((-0.5, -0.9, 0), "down and left"),
        ((0.2, -0.1, 0.0), "stop"),
        ((0.5, 0.5, 0), "right and up"),  # equal: in the order of the dimensions
        ((0.3, 0, 1), "close gripper and right"),
        ((0, 0.3, -1), "open gripper and up"),
    ],
)
def test_the_phrase_of_a_change(change, phrase):
    tokens = PLANE.tokens(np.array(change, float))
    assert PLANE.render(tokens) == phrase
    np.testing.assert_array_equal(PLANE.parse(phrase), tokens)


def test_phrases_and_tokens_say_the_same():
    rng = np.random.default_rng(0)
    words = Vocabulary(ARM, scale=tuple(np.linspace(0.5, 2, 9).tolist()))
    changes = rng.normal(size=(300, 9)) * rng.integers(0, 2, (300, 9))
    for change, tokens in zip(changes, words.tokens(changes), strict=True):
        np.testing.assert_array_equal(words.parse(words.render(tokens)), tokens)
        assert words.space.contains(tokens)
        opposite = words.tokens(-change)
        np.testing.assert_array_equal(np.where(tokens > 0, tokens + 1 - 2 * ((tokens - 1) % 2), 0), opposite)
        larger = words.tokens(np.where(np.abs(change) < 0.6, 0, change))  # above every threshold, or nothing
        np.testing.assert_array_equal(words.tokens(np.where(np.abs(change) < 0.6, 0, 7 * change)), larger)
    assert words.render(words.parse("")) == words.render(words.parse(" Stop ")) == "stop"


def test_unknown_words_are_refused_with_those_allowed():
    with pytest.raises(ConfigError, match=r"'rigth': did you mean right.* The words are right, left, up"):
        PLANE.parse("up and rigth")
    with pytest.raises(ConfigError, match="two things about one dimension"):
        PLANE.parse("up and down")
    for wrong in (
        {"words": (("up", "up"),)}, {"words": (("up and", "x"),), "scale": (0.0,)}, {"words": (("a and b", "c"),)},
        {"words": (("stop", "go"),)}, {"threshold": 0.0}, {"scale": (1.0,)}, {"words": (("Up", "down"),)},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            Vocabulary(**wrong)


def test_motions_are_labelled_from_what_is_achieved_within_the_episode():
    x = np.array([0, 0.1, 0.2, 0.9, 0.9, 50, 50.0, 49.5, 49.5])  # two episodes, of 4 and 3 steps
    states = np.stack([x, 0 * x, np.array([0, 0, 0, 0, 1, 0, 0, 0, 0])], -1).astype(np.float32)
    now, then = [0, 1, 2, 3, 5, 6, 7], [1, 2, 3, 4, 6, 7, 8]
    ends = np.array([0, 0, 0, 1, 0, 0, 1], bool)
    given = Dataset.from_arrays(
        obs=states[now], next_obs=states[then], action=np.zeros((7, 3)), reward=np.zeros(7), terminated=ends,
        truncated=~ends & False, validate=False,
    )  # fmt: skip
    found = label_motions(given, lambda obs: obs, PLANE, window=2)
    said = [PLANE.render(tokens) for tokens in found.obs["phrase"]]
    assert said == ["stop", "right", "close gripper and right", "close gripper", "left", "left", "stop"]
    after = [PLANE.render(tokens) for tokens in found.next_obs["phrase"]]
    assert after == [*said[1:4], said[3], *said[5:7], said[6]]
    np.testing.assert_array_equal(found.obs["observation"], given.obs)
    assert found.canonical().obs.shape == (7, 3 + 3 * 7)
    assert [d for d in check(found) if d.severity == "error"] == []
    with pytest.raises(ConfigError, match="another name"):
        label_motions(found, lambda obs: obs["observation"], PLANE)
    with pytest.raises(DataError, match="2 dimensions"):
        label_motions(given, lambda obs: obs[:, :2], PLANE)
    with pytest.raises(ConfigError, match="window"):
        label_motions(given, lambda obs: obs, PLANE, window=0)


def test_a_part_must_fit_the_log():
    with pytest.raises(DataError):
        with_parts(walks(), {"task": (np.zeros(3, np.int64), spaces.Discrete(2))})
    found = with_parts(walks(), {"task": (np.arange(8), spaces.Discrete(8))})
    assert found.next_obs["task"].tolist() == [1, 2, 3, 3, 4, 6, 7, 7]
