"""Debate reward: the judge, the players, the relabelling, and the recipe with its stages."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import CheckpointError, ConfigError, RunExists, SpaceMismatch
from habitus.core.experience import Transition
from habitus.core.policy import Deployed
from habitus.data.dataset import Dataset
from habitus.measure.justifiability import justifiability, share_justified
from habitus.methods.offline._debaters import Attack, Debaters, InTurn, own_moves
from habitus.methods.offline._judge import BradleyTerry, Scores, handful, preference_loss
from habitus.methods.offline.debate_reward import actions_of, debate_about, debate_reward, judged, relabelled
from habitus.methods.offline.debate_reward import justified_reward as paid_for
from habitus.nets.policies import Greedy, Mode
from habitus.train.loop import learn

from .cases import KEY, close, discrete_spec, same

N, ACTIONS = 6, 3
RNG = np.random.default_rng(0)
OBS = RNG.normal(size=(400, N)).astype(np.float32)
LOG = Dataset.from_arrays(
    obs=OBS, next_obs=OBS[::-1].copy(), action=OBS[:, :ACTIONS].argmax(1), reward=OBS[:, 0],
    terminated=np.ones(400, bool), truncated=np.zeros(400, bool), action_space=discrete_spec(N, ACTIONS).action_space,
)  # fmt: skip
STATES = jnp.asarray(OBS)
SMALL = dict(
    evidence=2, judge_updates=20, judge_hidden=(8,), generations=1, confuser_updates=2, argumentator_updates=1,
    debate_hidden=(8,), games=8, updates=20, batch_size=16, hidden=(8,), n_step=1,
)  # fmt: skip


def by_sum(features, revealed, action):
    return features @ revealed


def by_own(features, revealed, action):
    """Prefers the action whose own feature is revealed to be larger."""
    return (features * revealed)[action]


@pytest.fixture(scope="module")
def judge():
    learner = BradleyTerry(evidence=2, hidden=(32,), learning_rate=5e-3)
    return learner.judge(learn(learner, LOG, 400, points=1).states[0])


@pytest.fixture(scope="module")
def speaker():
    debaters = Debaters(rollout_length=2, hidden=(8,))
    world = debate_about(LOG, by_sum, 2)
    return debaters.policy(debaters.init(world.spec, KEY))


# --- the judge


def test_the_judge_sees_revealed_features_alone(judge):
    mask = handful(KEY, N, 2)
    hidden_changed = jnp.where(mask > 0, STATES[0], STATES[1] + 5.0)
    assert judge(STATES[0], mask, jnp.array(1)) == judge(hidden_changed, mask, jnp.array(1))
    shown_changed = jnp.where(mask > 0, STATES[1] + 5.0, STATES[0])
    assert judge(STATES[0], mask, jnp.array(1)) != judge(shown_changed, mask, jnp.array(1))


def test_a_feature_of_zero_is_not_a_feature_that_is_hidden(judge):
    state, all_of_it = STATES[0].at[2].set(0.0), jnp.ones(N)
    assert judge(state, all_of_it, jnp.array(1)) != judge(state, all_of_it.at[2].set(0.0), jnp.array(1))


def test_evidence_is_exactly_as_large_as_asked_for_and_any_feature_may_be_in_it():
    masks = jax.vmap(lambda k: handful(k, N, 2))(jax.random.split(KEY, 3000))
    assert (masks.sum(1) == 2).all()
    np.testing.assert_allclose(masks.mean(0), 2 / N, atol=0.05)


def test_the_preference_loss_is_ln_2_at_equal_scores_and_antisymmetric_in_the_margin():
    x = jnp.array([0.3, -2.0])
    assert float(preference_loss(x, x)) == pytest.approx(np.log(2), abs=1e-6)
    margin = preference_loss(x, x + 1.5) - preference_loss(x + 1.5, x)
    assert float(margin) == pytest.approx(1.5, abs=1e-5)  # log-odds of swapped labels


def test_the_judge_learns_what_was_done(judge):
    chosen = np.asarray(jax.vmap(Scores(judge))(STATES).argmax(1))
    assert (chosen == np.asarray(LOG.action)).mean() > 0.7


def test_a_judge_refuses_states_without_features():
    learner = BradleyTerry()
    with pytest.raises(ConfigError, match="evidence"):
        learner.init(discrete_spec(3, 3), KEY)
    with pytest.raises(SpaceMismatch, match="not vectors"):
        from .cases import tabular_spec

        learner.init(tabular_spec(), KEY)


# --- the players


def test_own_moves_are_every_second_one_with_what_is_paid_until_the_next():
    moves, games = 4, 2
    turn = jnp.array([[0, 1], [1, 0], [0, 1], [1, 0]], jnp.float32)  # player 0 starts the first game
    obs = jnp.stack([jnp.arange(8.0).reshape(moves, games), turn], -1)
    reward = jnp.zeros((moves, games)).at[-1].set(jnp.array([1.0, -1.0]))
    over = jnp.zeros((moves, games), bool).at[-1].set(True)
    rollout = Transition(obs, jnp.arange(8).reshape(moves, games), reward, over, ~over & over, obs + 100)
    first, second = (own_moves(rollout, jnp.array(p)) for p in (0, 1))
    np.testing.assert_array_equal(first.action, [[0, 3], [4, 7]])
    np.testing.assert_array_equal(second.action, [[2, 1], [6, 5]])
    np.testing.assert_array_equal(first.reward, [[0, 0], [1, -1]])
    np.testing.assert_array_equal(second.reward, -first.reward)  # zero-sum
    for rows in (first, second):
        assert rows.obs.shape == (2, 2, 1) and np.asarray(rows.terminated).tolist() == [[False] * 2, [True] * 2]
    np.testing.assert_array_equal(first.next_obs[0, 0], rollout.next_obs[1, 0, :1])  # after the answer


def rounds(n, start=None, **settings):
    debaters = (Debaters if start is None else Attack)(rollout_length=2, num_envs=16, hidden=(8,), **settings)
    world = debate_about(LOG, by_own, 2, alone=settings.get("against") == "isolated")
    return debaters, learn(debaters, world, n * 32, points=1, warm_start=start)


def test_confuser_and_argumentator_learn_in_turn():
    settings = dict(confuser_updates=2, argumentator_updates=1)
    after = {n: rounds(n, **settings)[1].states[0] for n in (1, 2, 3)}
    assert same(after[1].argumentator, after[2].argumentator) and not same(after[1].opponent, after[2].opponent)
    assert same(after[2].opponent, after[3].opponent) and not same(after[2].argumentator, after[3].argumentator)


def test_in_self_play_the_opponent_is_an_earlier_argumentator():
    after = {n: rounds(n, against="self-play", refresh=2)[1].states[0] for n in (1, 2, 3)}
    assert not same(after[1].opponent, after[1].argumentator) and same(after[2].opponent, after[2].argumentator)
    assert same(after[3].opponent, after[2].argumentator) and not same(after[3].argumentator, after[3].opponent)


def test_an_attack_leaves_the_argumentator_as_it_is():
    _, before = rounds(1)
    _, attack = rounds(3, before, confuser_updates=1)
    assert same(attack.states[0].argumentator, before.states[0].argumentator)
    assert not same(attack.states[0].opponent, before.states[0].opponent)


def test_one_who_speaks_alone_learns_to_reveal_what_counts():
    debaters, run = rounds(150, against="isolated", learning_rate=5e-3)
    alone = debate_about(LOG, by_own, 2, alone=True)
    obs, mine = STATES, jnp.asarray(LOG.action, jnp.int32)
    other = (mine + 1) % ACTIONS
    ours = (judged(alone, debaters.policy(run.states[0]), obs, mine, other, KEY) > 0).mean()
    fresh = debaters.init(alone.spec, jax.random.key(5))
    theirs = (judged(alone, debaters.policy(fresh), obs, mine, other, KEY) > 0).mean()
    assert ours > theirs + 0.1 and run.history["utility"][-1].mean() > 0.2


def test_whole_rounds_are_asked_for():
    with pytest.raises(ConfigError, match="rollout_length must be their 2 moves"):
        learn(Debaters(rollout_length=4), debate_about(LOG, by_sum, 2), 1024)


# --- the reward


def test_weight_0_leaves_rewards_as_they_are_and_weight_1_pays_the_bonus_or_nothing(judge, speaker):
    world = debate_about(LOG, judge, 2)
    paid = paid_for(LOG, world, speaker, Greedy(lambda o: o[ACTIONS:]), 5.0, KEY)
    assert relabelled(LOG, paid, 0.0).reward.tobytes() == np.asarray(LOG.reward).tobytes()
    assert set(relabelled(LOG, paid, 1.0).reward.tolist()) == {0.0, 5.0}
    half = relabelled(LOG, paid, 0.5)
    np.testing.assert_allclose(half.reward, 0.5 * np.asarray(LOG.reward) + 0.5 * paid, rtol=1e-6)
    close(half.transitions(slice(None)).obs, LOG.transitions(slice(None)).obs)
    with pytest.raises(ConfigError, match="weight"):
        relabelled(LOG, paid, 1.5)


def test_doing_what_the_baseline_does_pays_nothing(judge, speaker):
    as_logged = Greedy(lambda o: o[:ACTIONS])
    assert not paid_for(LOG, debate_about(LOG, judge, 2), speaker, as_logged, 5.0, KEY).any()


def test_with_all_features_revealed_the_speakers_do_not_matter(judge):
    world = debate_about(LOG, judge, N)
    obs, mine = STATES, jnp.asarray(LOG.action, jnp.int32)
    rows = obs, mine, (mine + 1) % ACTIONS, KEY
    whole = judged(world, None, *rows)
    debaters = Debaters(rollout_length=N, hidden=(8,))
    for seed in (0, 1):
        voice = debaters.policy(debaters.init(world.spec, jax.random.key(seed)))
        np.testing.assert_allclose(judged(world, voice, *rows), whole, rtol=1e-4, atol=1e-5)


def test_justifiability_counts_only_rows_in_which_the_policies_differ():
    world = debate_about(LOG, lambda f, m, a: jnp.where(a == 0, 1.0, 0.0), 2)
    zero, one, argmax = (Greedy(lambda o, i=i: jax.nn.one_hot(i, ACTIONS)) for i in (0, 1, 2))
    assert np.isnan(share_justified(zero, zero, LOG, world, None))
    assert share_justified(zero, one, LOG, world, None) == 1.0
    assert share_justified(one, argmax, LOG, world, None) == 0.0  # a tie is no win
    mixed = Greedy(lambda o: jnp.where(o[0] > 0, jax.nn.one_hot(0, ACTIONS), jax.nn.one_hot(1, ACTIONS)))
    assert share_justified(mixed, one, LOG, world, None) == 1.0
    assert set(np.asarray(actions_of(mixed, STATES)).tolist()) == {0, 1}


# --- the recipe


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe") / "run"
    return folder, learn("debate-reward", LOG, seeds=2, folder=folder, **SMALL)


def test_each_stage_is_a_run_in_the_folder_of_the_recipe(kept):
    folder, run = kept
    stages = {path.parent.name for path in folder.glob("*/config.json")}
    assert stages == {"judge", "debaters", "baseline", "policy-0", "policy-1"}
    saved = [Deployed.load(path) for path in sorted((folder / "policy").glob("seed-*"))]
    obs = STATES[:20]
    for policy, ours in zip(saved, run.policies, strict=True):
        np.testing.assert_array_equal(actions_of(policy.policy, obs), actions_of(ours.policy, obs))
    assert run.debate is not None and len(run.speakers) == 2 and not np.isnan(justifiability(run, LOG)).all()


def test_a_finished_stage_is_not_repeated(kept, monkeypatch):
    from habitus.train import engine

    folder, run = kept
    monkeypatch.setattr(engine.PureEngine, "advance", lambda *_: pytest.fail("a stage was repeated"))
    again = learn("debate-reward", LOG, seeds=2, folder=folder, resume=True, **SMALL)
    assert same(again.states, run.states)


def test_another_run_in_the_folder_is_refused(kept):
    folder, _ = kept
    with pytest.raises(RunExists):
        learn("debate-reward", LOG, seeds=2, folder=folder, **SMALL)
    with pytest.raises(CheckpointError, match="hyperparameters.bonus was 5.0"):
        learn("debate-reward", LOG, seeds=2, folder=folder, resume=True, bonus=4.0, **SMALL)


def test_weight_0_is_the_baseline_and_needs_no_judge():
    run = debate_reward(LOG, weight=0.0, **SMALL)
    assert run.debate is None and run.baseline is not None and same(run.states, run.baseline.states)
    with pytest.raises(ConfigError, match="its own baseline"):
        justifiability(run, LOG)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"wieght": 0.5}, "did you mean weight"),
        ({"steps": 3}, "no argument 'steps'"),
        ({"env": "cartpole"}, "takes no env="),
        ({"weight": 1.5}, "weight is a share"),
        ({"evidence": 3}, "evidence must be even"),
        ({"evidence": 8}, "evidence must be from 1 to"),
        ({"speakers": "loud"}, "speakers must be one of"),
        ({"bonus": 0.0}, "bonus must be above 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_learned(bad, said, monkeypatch):
    from habitus.train.recipe import Stages

    monkeypatch.setattr(Stages, "learn", lambda *_, **__: pytest.fail("something was learned"))
    with pytest.raises(ConfigError, match=said):
        learn("debate-reward", LOG, **bad)


def test_without_a_log_it_says_so():
    with pytest.raises(ConfigError, match="learns from data="):
        learn("debate-reward")


def test_either_player_may_be_anyone():
    spec = debate_about(LOG, by_sum, 2).spec
    debaters = Debaters(rollout_length=2, hidden=(8,))
    states = [debaters.init(spec, jax.random.key(i)) for i in (0, 1)]
    both = InTurn(*(Mode(s.argumentator.actor) for s in states))
    obs = jnp.concatenate([jnp.ones(N), jax.nn.one_hot(1, ACTIONS), STATES[0]])
    for turn, state in enumerate(states):
        ours, _ = both(jnp.append(obs, turn), (), KEY)
        assert ours == state.argumentator.actor(obs).mode()
    assert dataclasses.is_dataclass(debaters)
