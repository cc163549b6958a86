"""Samples of switching tasks: contact, what a switch asks for, and the actions that are made for it."""

import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError, DataError, SpaceMismatch
from habitus.data.contact import ADVANCE, FORWARD, ROLLBACK, behaviour_of, phases, without_flicker
from habitus.data.dataset import Dataset
from habitus.data.switches import Hand, switch_samples

from .logs import log

STEP = 0.25


def demonstrations(contacts=("00111100", "0011110000", "000111000"), absolute=False, seed=0):
    """One walk [x, y, held, scene, time] for each string of contact flags; actions are moves or targets, and a grip."""
    rng = np.random.default_rng(seed)
    columns = {name: [] for name in ("obs", "next_obs", "action", "truncated")}
    for number, flags in enumerate(contacts):
        held = np.array([int(flag) for flag in flags + flags[-1]], np.float32)
        moves = rng.integers(-2, 3, (len(flags), 2)) / 8
        path = np.cumsum(np.vstack([rng.integers(-4, 5, (1, 2)) / 8, moves]), 0)
        states = np.column_stack([path, held, np.full(len(held), number), np.arange(len(held))]).astype(np.float32)
        columns["obs"].append(states[:-1])
        columns["next_obs"].append(states[1:])
        target = path[1:] if absolute else moves
        columns["action"].append(np.column_stack([target, 2 * held[1:] - 1]).astype(np.float32))
        columns["truncated"].append(np.arange(len(flags)) == len(flags) - 1)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    rows = len(joined["obs"])
    given = Dataset.from_arrays(
        **joined, reward=np.zeros(rows), terminated=np.zeros(rows, bool), action_space=spaces.Box(-9, 9, (3,)),
        validate=False,
    )  # fmt: skip
    return given, given.obs[:, 2] > 0.5


def move(now, then, grip):
    return np.column_stack([then - now, grip])


HAND = Hand(pose=lambda obs: obs[:, :2], action=move, max_step=STEP)


def samples(size=400, hand=HAND, task=(0, 1, 1), **options):
    given, contact = demonstrations(options.pop("contacts", ("00111100", "0011110000", "000111000")))
    return given, contact, switch_samples(given, np.array(task), contact, hand, size, **options)


def rows_of(given, found):
    """The row that each sample begins at; no two observations are alike."""
    shown = found.obs["observation"]
    return [int(np.flatnonzero((given.obs == one).all(-1))[0]) for one in shown]


def run_from(pose, actions):
    """Poses that displacements lead through."""
    return np.cumsum(np.vstack([pose, actions[:, :2]]), 0)


# --- contact


def test_the_table_of_behaviours():
    table = {(0, 0, 0): FORWARD, (0, 0, 1): FORWARD, (0, 1, 1): ROLLBACK, (0, 1, 0): ADVANCE, (1, 0, 1): ROLLBACK}
    for (previous, current, contact), wanted in table.items():
        assert behaviour_of(np.array(previous), np.array(current), np.array(contact, bool)) == wanted


def flags(*episodes):
    given = log("box", tuple(map(len, episodes)), "T" * len(episodes))
    return given, np.array([letter == "1" for letter in "".join(episodes)])


def test_phases_of_contact():
    given, contact = flags("0011100", "1101", "000")
    assert phases(given, contact).tolist() == [0, 0, 1, 1, 1, 2, 2, 1, 1, 2, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("seen", "cleaned"),
    [
        ("0011100", "0011100"),
        ("0010000", "0000000"),
        ("0110111", "0111111"),
        ("001011", "000011"),
        ("1000001", "1000001"),
        ("0101010", "0000000"),
        ("1", "1"),
    ],
)
def test_flicker_is_removed_within_an_episode(seen, cleaned):
    given, contact = flags("11", seen, "11")
    found = without_flicker(given, contact)
    assert "".join("01"[int(flag)] for flag in found) == f"11{cleaned}11"
    with pytest.raises(DataError, match="contact has shape"):
        without_flicker(given, contact[1:])


# --- samples


def test_each_sample_is_one_that_its_row_allows():
    given, contact, found = samples()
    seen, rows = found.obs, rows_of(given, found)
    np.testing.assert_array_equal(seen["contact"], contact[rows])
    wanted = behaviour_of(seen["previous"], seen["current"], seen["contact"].astype(bool))
    np.testing.assert_array_equal(seen["behaviour"], wanted)
    np.testing.assert_array_equal(seen["previous"], np.array([0, 1, 1])[given.episode_of(rows)])
    before = np.where(np.isin(rows, given.starts), False, contact[np.maximum(np.array(rows) - 1, 0)])
    np.testing.assert_array_equal(seen["contact_before"], before)
    assert found.action.shape == (400, 16, 3) and found.terminated.all() and len(found.starts) == 400
    counts = np.bincount(seen["behaviour"], minlength=3) / 400
    assert counts[0] == pytest.approx(0.75, abs=0.08) and (counts[1:] > 0.05).all()  # .6 of .8 where one is not allowed


def test_forward_alone_is_the_log_in_chunks():
    given, _, found = samples(shares=(1.0, 0.0, 0.0), length=5, size=100, task=(0, 0, 0))
    assert (found.obs["behaviour"] == FORWARD).all()
    np.testing.assert_array_equal(found.obs["previous"], found.obs["current"])
    for row, chunk in zip(rows_of(given, found), found.action, strict=True):
        there = min(5, given.ends[given.episode_of(row)] + 1 - row)
        np.testing.assert_array_equal(chunk[:there], given.action[row : row + there])
        assert (chunk[there:] == [0, 0, -1]).all()  # past the end the hand stays, open


def test_rollback_goes_back_over_the_poses_and_opens_where_it_had_closed():
    given, contact, found = samples(shares=(0.0, 1.0, 0.0))
    rolled = np.flatnonzero(found.obs["behaviour"] == ROLLBACK)
    rows = np.array(rows_of(given, found))
    assert len(rolled) and contact[rows[rolled]].all() and not contact[np.delete(rows, rolled)].any()
    for sample in rolled:
        row = rows[sample]
        free = max(r for r in range(row) if not contact[r])  # the last pose before the contact
        path, n = run_from(given.obs[row, :2], found.action[sample]), row - free
        np.testing.assert_allclose(path[: n + 1], given.obs[free : row + 1, :2][::-1], atol=1e-6)
        np.testing.assert_allclose(path[n:], np.broadcast_to(given.obs[free, :2], path[n:].shape), atol=1e-6)
        assert found.action[sample, :, 2].tolist() == [1] * (n - 1) + [-1] * (16 - n + 1)


def test_advance_goes_straight_to_the_nearest_start_and_on_from_there():
    given, contact, found = samples(shares=(0.0, 0.0, 1.0), scene=lambda obs: obs[:, 3:4], length=24)
    moved = np.flatnonzero(found.obs["behaviour"] == ADVANCE)
    rows = np.array(rows_of(given, found))
    assert len(moved) and not contact[rows[moved]].any()
    for sample in moved:
        row, episode = rows[sample], given.episode_of(rows[sample])
        to = 1 if episode == 0 else 0  # of task 1 the second episode is nearer to the first than the third is
        path, goal = run_from(given.obs[row, :2], found.action[sample]), given.obs[given.starts[to], :2]
        n = int(np.ceil(np.linalg.norm(goal - given.obs[row, :2]) / STEP - 1e-6))
        np.testing.assert_allclose(path[n], goal, atol=1e-5)
        steps = np.linalg.norm(np.diff(path[: n + 1], axis=0), axis=-1)
        assert (steps <= STEP + 1e-5).all() and np.ptp(steps) < 1e-5 if n else True
        assert (found.action[sample, :n, 2] == -1).all()
        rest = min(24 - n, given.lengths[to])
        first = given.starts[to]
        np.testing.assert_array_equal(found.action[sample, n : n + rest], given.action[first : first + rest])


def test_absolute_targets_are_poses():
    given, contact = demonstrations(absolute=True)
    hand = Hand(lambda obs: obs[:, :2], lambda now, then, grip: np.column_stack([then, grip]), max_step=STEP)
    found = switch_samples(given, np.array([0, 1, 1]), contact, hand, 100, shares=(0.0, 1.0, 0.0), length=3)
    for sample in np.flatnonzero(found.obs["behaviour"] == ROLLBACK):
        row = rows_of(given, found)[sample]
        np.testing.assert_array_equal(found.action[sample, 0, :2], given.obs[row - 1, :2])


def test_without_contact_nothing_is_rolled_back():
    given, _, found = samples(contacts=("0000", "000"), task=(0, 1), shares=(0.0, 1.0, 0.0), size=20)
    assert (found.obs["behaviour"] == FORWARD).all() and len(found) == 20


def test_contact_from_the_first_row_on_is_rolled_back_to_it():
    given, contact, found = samples(contacts=("1111", "0000"), task=(0, 1), shares=(0.0, 1.0, 0.0), size=50)
    for sample in np.flatnonzero(found.obs["behaviour"] == ROLLBACK):
        row = rows_of(given, found)[sample]
        grip = found.action[sample, :, 2]
        assert grip.tolist() == [1] * row + [-1] * (16 - row)
        np.testing.assert_allclose(run_from(given.obs[row, :2], found.action[sample])[-1], given.obs[0, :2], atol=1e-6)


def test_a_contact_that_cannot_be_undone_goes_forward():
    _, _, found = samples(reversible=(False, True), shares=(0.2, 0.4, 0.4))
    seen = found.obs
    first = seen["previous"] == 0
    assert (seen["behaviour"][first & (seen["contact"] == 1)] == FORWARD).all()
    assert (seen["behaviour"][~first] == ROLLBACK).any()


def test_the_same_seed_draws_the_same():
    one, two, other = (samples(size=50, seed=seed)[2] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.action, two.action)
    assert not np.array_equal(one.action, other.action)


def test_what_is_refused():
    with pytest.raises(ConfigError, match="one task only"):
        samples(task=(0, 0, 0))
    with pytest.raises(ConfigError, match="sum 1"):
        samples(shares=(0.5, 0.5, 0.5))
    with pytest.raises(ConfigError, match="length 0"):
        samples(length=0)
    with pytest.raises(ConfigError, match="one flag for each of 2"):
        samples(reversible=(True,))
    with pytest.raises(DataError, match="no episode shows task 1"):
        samples(task=(0, 2, 2))
    with pytest.raises(DataError, match="each of the 3 episodes"):
        samples(task=(0, 1))
    with pytest.raises(DataError, match="leave"):
        samples(hand=Hand(HAND.pose, lambda now, then, grip: 99 + move(now, then, grip)))
    with pytest.raises(ConfigError, match="max_step"):
        Hand(HAND.pose, move, max_step=0.0)
    whole = log("discrete")
    with pytest.raises(SpaceMismatch, match="real actions"):
        switch_samples(whole, np.array([0, 1, 0]), np.zeros(len(whole), bool), HAND, 4)
