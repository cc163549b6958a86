"""Diverse driving by rules: the rules, what is calibrated, optimised and drawn, the repair, and the recipe."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import habitus
from habitus.core import stl
from habitus.core.errors import ConfigError, DataError, SpaceMismatch
from habitus.core.experience import Transition
from habitus.data.behaviours import LaneDriver
from habitus.envs.worlds.lane_scene import LIMITS, LaneScene, Scene, scene_of
from habitus.methods.generative._lane_plans import Search, augmented, commands, logged
from habitus.methods.generative._lane_rules import (
    CASE,
    KEEP,
    LEFT,
    RIGHT,
    Case,
    calibrated,
    driven,
    loosened,
    possible,
    robustness,
    rules,
    signals,
)  # fmt: skip
from habitus.methods.generative._plan_diffusion import PlanDiffusion
from habitus.methods.generative._refine import Refined, RefineNet, Refiner, RefinerState, RuleDriver, draw_all, towards
from habitus.methods.generative.pstl import drawn, world_of
from habitus.train.logs import record_log
from habitus.train.loop import learn

from .cases import same

KEY = jax.random.key(0)
WORLD, T = LaneScene(), 20
SMALL = dict(
    horizon=6, randoms=2, search_iterations=2, levels=2, updates=3, batch_size=8, hidden=(8,), siblings=4, pool=3,
    refine_updates=2, refine_batch_size=2,
)  # fmt: skip
rho_of = eqx.filter_jit(lambda case, plans, temperature=None: jax.vmap(
    lambda plan: robustness(case, plan, WORLD, temperature))(plans))  # fmt: skip


def case_of(manoeuvre=KEEP, theta=(0.0, 12.0, -1.0, 1.0, 0.5, 0.5), ego=(0.0, 0.0, 0.0, 8.0)):
    cars = ((-40.0, 0.0, 8.0), (3.0, -3.5, 8.0), (40.0, 0.0, 8.0))
    scene = Scene(*(jnp.asarray(x, jnp.float32) for x in (ego, 0.0, cars)))
    return Case(scene, jnp.asarray(manoeuvre, jnp.int32), jnp.asarray(theta, jnp.float32))


def random_plans(n, scale=(0.1, 0.3), seed=0):
    return jnp.asarray(scale) * jax.random.uniform(jax.random.key(seed), (n, T, 2), minval=-1.0)


@pytest.fixture(scope="module")
def log():
    return record_log(LaneDriver(), habitus.make("lane-scene"), 60)


@pytest.fixture(scope="module")
def real(log):
    return logged(log, WORLD, T)


@pytest.fixture(scope="module")
def sampler(real):
    learner = PlanDiffusion(levels=6, hidden=(16,), candidates=3)
    return learner.policy(learner.init(real.spec, KEY))


# --- the rules


def meaning(case, plan):
    """The rules read out loud, quantifier by quantifier."""
    found = signals(case.scene, case.manoeuvre, plan * jnp.asarray(LIMITS), WORLD)
    speed, gap, offset, heading = (np.asarray(found[n], np.float64) for n in ("speed", "gap", "offset", "heading"))
    vmin, vmax, dmin, dmax, dsafe, thmax = np.asarray(case.theta, np.float64)
    inside, aligned = np.minimum(offset - dmin, dmax - offset), (thmax - heading) / thmax
    road = min(min(speed[t] - vmin, vmax - speed[t], gap[t] - dsafe) for t in range(T))
    if case.manoeuvre == KEEP:
        return min(road, min(inside), min(aligned))
    return min([road, *(max(min(x[t] for t in range(k, T)) for k in range(T // 2)) for x in (inside, aligned))])


@pytest.mark.parametrize("manoeuvre", [KEEP, LEFT, RIGHT])
def test_exact_robustness_is_that_of_the_rules_read_out_loud(manoeuvre):
    plans = random_plans(12, (0.2, 0.6))
    for theta in ((0.0, 12.0, -1.0, 1.0, 0.5, 0.5), (6.0, 9.0, -2.5, 0.4, 0.0, 0.2)):
        case = case_of(manoeuvre, theta)
        np.testing.assert_allclose(rho_of(case, plans), [meaning(case, plan) for plan in plans], atol=1e-4)


def test_smooth_robustness_keeps_its_bounds_and_becomes_exact_as_it_cools():
    plans = random_plans(8)
    for manoeuvre in (KEEP, LEFT):
        case, gaps = case_of(manoeuvre), []
        exact, formula = rho_of(case, plans), rules(T)[min(manoeuvre, 1)]
        for temperature in (0.2, 0.05, 0.005):
            smooth = rho_of(case, plans, jnp.asarray(temperature))
            below, above = stl.smoothing_error(formula, T, temperature)
            assert (smooth >= exact - below - 1e-4).all() and (smooth <= exact + above + 1e-4).all()
            gaps.append(float(jnp.abs(smooth - exact).max()))
        assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 0.05


def test_soft_extremes_algebra_and_windows_are_those_of_the_card():
    x = jax.random.normal(KEY, (T,))
    p = stl.parse("x > 0", ("x",))
    for temperature in (None, 0.05):
        first = lambda f, x=x, t=temperature: float(stl.robustness(f, {"x": x}, temperature=t))  # noqa: E731
        assert first(stl.Not(stl.Always(p))) == first(stl.Eventually(stl.Not(p)))
        assert first(stl.Always(p, 15, 40)) == first(stl.Always(p, 15))  # the window is cut at the end
        assert first(stl.Eventually(p, 3)) == first(stl.Eventually(p, 3), x.at[:3].set(9.0))  # only what is to come
    most, least = (float(stl.robustness(f(p), {"x": x}, temperature=0.05)) for f in (stl.Eventually, stl.Always))
    assert 0 <= most - float(x.max()) <= 0.05 * np.log(T) and 0 <= float(x.min()) - least <= 0.05 * np.log(T)
    flat = stl.robustness(stl.Always(p), {"x": jnp.full(T, 2.0)}, temperature=0.05)
    assert float(flat) == pytest.approx(2 - 0.05 * np.log(T), abs=1e-5)
    with pytest.raises(DataError, match="20 steps ahead"):
        stl.robustness(stl.Always(p, T), {"x": x})


def test_the_gradient_of_robustness_is_that_of_finite_differences():
    one = eqx.filter_jit(lambda plan, case: robustness(case, plan, WORLD, 0.1))
    for manoeuvre in (KEEP, LEFT):
        case, plan = case_of(manoeuvre), random_plans(1)[0]
        slope = jax.grad(one)(plan, case)
        for at in ((0, 0), (3, 1), (9, 0), (15, 1)):
            ends = [float(one(plan.at[at].add(h), case)) for h in (1e-2, -1e-2)]
            assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float(slope[at]), abs=1e-2, rel=1e-2)


def test_manoeuvres_are_possible_where_there_is_a_lane_and_told_from_what_was_driven():
    for y, wanted in ((0.0, [1, 1, 1]), (3.5, [1, 0, 1]), (-3.5, [1, 1, 0])):
        assert possible(case_of(ego=(0.0, y, 0.0, 8.0)).scene, WORLD).tolist() == wanted
    turn = jnp.zeros((T, 2)).at[:2, 0].set(0.8).at[5:7, 0].set(-0.8)
    for plan, wanted in ((0 * turn, KEEP), (0.5 * turn, LEFT), (-0.5 * turn, RIGHT)):
        assert int(driven(case_of().scene, plan, WORLD)) == wanted


# --- what is calibrated and loosened


def test_a_logged_plan_keeps_the_rules_that_were_calibrated_on_it(log, real):
    assert len(real) >= 59 and (np.asarray(real.reward) > 0).all()
    assert set(np.unique(real.obs["manoeuvre"])) == {KEEP, LEFT, RIGHT}
    start = np.asarray(log.obs)[log.starts[:1]]
    case = calibrated(scene_of(jnp.asarray(start[0])), jnp.asarray(real.canonical().action[0]).reshape(T, 2), WORLD)
    np.testing.assert_allclose(real.canonical().obs[0], case.vector, rtol=1e-5, atol=1e-5)
    assert float(rho_of(case, jnp.asarray(real.canonical().action[:1]).reshape(1, T, 2))[0]) == pytest.approx(
        float(real.reward[0]), abs=1e-4
    )


def test_a_case_is_what_its_vector_says():
    case = Case(scene_of(jnp.arange(13.0) + 1), jnp.asarray(RIGHT, jnp.int32), jnp.arange(6.0))
    assert case.vector.shape == (CASE,)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), Case.of(case.vector), case)


def test_other_manoeuvres_get_looser_rules_that_hold_in_the_middle_of_the_lane():
    keys = jax.random.split(KEY, 200)
    for own in (KEEP, LEFT):
        case = case_of(own, (4.0, 9.0, 0.2, 0.9, 1.0, 0.3))
        theta = jax.vmap(lambda key, case=case: loosened(case, key))(keys)
        assert (theta[:, own] == case.theta).all()
        others = jnp.delete(theta, own, 1)
        low, high = others.min((0, 1)), others.max((0, 1))
        np.testing.assert_array_less([0.99, 10.29, -2.81, 0.0, -1e-6, 0.3 - 1e-6], low)
        np.testing.assert_array_less(high, [2.71, 12.01, 1e-6, 3.41, 1.01, 0.61])
        assert (others[..., 2] <= 0).all() and (others[..., 3] >= 0).all()


# --- optimisation


@pytest.fixture(scope="module")
def searched(real):
    some = real.subset(episodes=np.arange(4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("habitus.methods.generative._lane_plans.CHUNK", 4)  # so that the last chunk is not full
        return some, augmented(some, WORLD, KEY, randoms=4, search=Search(0.03, 150))


def test_optimised_plans_keep_the_rules_far_oftener_than_random_ones(searched):
    some, plans = searched
    rows, there = commands(some, WORLD, jax.random.split(KEY)[0])
    assert len(plans) == 4 * there.sum() and there.sum() % 4 > 0
    case = np.asarray(plans.canonical().obs)
    np.testing.assert_array_equal(case, np.repeat(rows[there], 4, 0).astype(np.float32))
    assert (np.abs(plans.canonical().action) <= 1 + 1e-6).all()
    start = jax.vmap(lambda key: Search().start(key, T))(jax.random.split(KEY, 16))
    before = np.mean([(rho_of(Case.of(jnp.asarray(c)), start) > 0).mean() for c in case[::4]])
    assert before < 0.1 and (np.asarray(plans.reward) > 0).mean() > 0.4


def test_the_reward_of_a_plan_is_its_exact_robustness_and_siblings_differ(searched):
    _, plans = searched
    rows = plans.canonical()
    for i in (0, 5, len(plans) - 1):
        found = rho_of(Case.of(jnp.asarray(rows.obs[i])), jnp.asarray(rows.action[i]).reshape(1, T, 2))
        assert float(found[0]) == pytest.approx(float(plans.reward[i]), abs=1e-4)
    assert np.abs(rows.action[0] - rows.action[1]).max() > 0.1


# --- the diffusion


def test_rows_that_break_their_rules_teach_nothing(real):
    learner = PlanDiffusion(levels=6, hidden=(16,), candidates=3)
    state, rows = learner.init(real.spec, KEY), real.canonical().transitions(slice(0, 8))
    rows = jax.tree.map(jnp.asarray, rows)
    loss = eqx.filter_jit(lambda rows: learner.denoising_loss(state.network, state, rows, KEY)[0])
    broken = dataclasses.replace(rows, reward=rows.reward.at[4:].set(-1.0))
    wild = dataclasses.replace(broken, action=broken.action.at[4:].set(7.0))
    assert loss(broken) == loss(wild) != loss(rows)
    assert loss(dataclasses.replace(rows, reward=-rows.reward)) == 0


def test_other_cars_are_a_set(sampler):
    case = case_of()
    other = dataclasses.replace(case, scene=dataclasses.replace(case.scene, cars=case.scene.cars[::-1]))
    network = sampler.network
    np.testing.assert_allclose(network.condition(case.vector), network.condition(other.vector), rtol=1e-5, atol=1e-5)
    assert network.condition(case.vector).shape == (network.condition_size,)


def test_the_most_robust_of_the_last_steps_is_taken_and_the_first_of_equals(sampler, monkeypatch):
    wild, calm = jnp.zeros((T, 2)).at[:, 1].set(2.0), jnp.zeros((T, 2))
    steps = jnp.stack([wild, calm, -calm])  # -0 tells the two calm ones apart
    monkeypatch.setattr("habitus.methods.generative._plan_diffusion.ddpm_last", lambda *_, **__: steps)
    case = case_of()
    plans, rho = eqx.filter_jit(lambda sampler, vector: sampler.siblings(vector, 2, KEY))(sampler, case.vector)
    assert (plans == 0).all() and not np.signbit(np.asarray(plans)).any()
    np.testing.assert_allclose(rho, rho_of(case, steps[1:2])[0], rtol=1e-5)


def test_guidance_raises_robustness(sampler):
    case = np.asarray(case_of().vector)[None]
    plain, guided = (
        draw_all(Refined(dataclasses.replace(sampler, guidance=3, guidance_rate=jnp.asarray(rate))), case, 8, KEY)[1]
        for rate in (1e-6, 0.05)
    )
    assert float(guided.mean()) > float(plain.mean()) + 0.1


# --- the repair


@pytest.fixture(scope="module")
def repair(sampler):
    return RefineNet(sampler.network.condition_size, 2 * T, 2, (16,), KEY)


def test_plans_that_keep_the_rules_are_unchanged_to_the_bit_and_others_move(repair, sampler):
    plans, rho = random_plans(8, (1.0, 1.0)), jnp.array([1.0, -1.0, 0.1, -0.1, 1.0, -2.0, 3.0, 0.0])
    found = repair(sampler.condition(case_of().vector), plans, rho)
    kept = np.asarray(rho > 0)
    assert (np.asarray(found)[kept] == np.asarray(plans)[kept]).all()
    assert (np.abs(np.asarray(found - plans))[~kept].max((1, 2)) > 1e-4).all() and (jnp.abs(found) <= 1).all()


def test_a_plan_knows_the_siblings_of_its_shard_and_no_others(repair, sampler):
    plans, rho, condition = random_plans(8), -jnp.ones(8), sampler.condition(case_of().vector)
    before = repair(condition, plans, rho)
    after = repair(condition, plans.at[0].set(1.0), rho)
    assert (before[4:] == after[4:]).all() and (before[1:4] != after[1:4]).any()


def test_shares_of_the_way_to_the_limit_end_at_the_limit():
    plan = jax.random.uniform(KEY, (1000,), minval=-1.0)
    for r, end in ((1.0, 1.0), (-1.0, -1.0)):
        np.testing.assert_allclose(towards(plan, jnp.full(1000, r)), end, atol=1e-6)
    assert (towards(plan, jnp.zeros(1000)) == plan).all()
    anything = towards(plan, jax.random.uniform(jax.random.key(1), (1000,), minval=-1.0))
    assert (jnp.abs(anything) <= 1).all()


def test_diversity_alone_moves_only_what_keeps_the_rules_once_repaired(sampler, repair):
    case, wild = case_of(), jnp.zeros((T, 2)).at[:, 1].set(1.0)  # ever faster: no small repair helps
    state = RefinerState(repair, (), sampler)
    slope = eqx.filter_jit(
        lambda learner, rows: eqx.filter_grad(learner.refine_loss, has_aux=True)(repair, state, rows, KEY)[0]
    )
    for first in (wild, 0 * wild):
        plans, no = jnp.stack([first, wild, wild, wild]).reshape(1, -1), jnp.zeros(1) > 0
        rows = Transition(case.vector[None], plans, jnp.zeros(1), no, no, case.vector[None])
        for weight, moves in ((0.0, False), (1.0, True)):
            learner = Refiner(sampler=sampler, siblings=4)
            found = slope(eqx.tree_at(lambda it: it.stl_weight, learner, jnp.asarray(weight)), rows)
            assert any(bool((leaf != 0).any()) for leaf in jax.tree.leaves(found)) == moves


# --- driving and the recipe


def test_the_rules_of_now_hold_the_lane_or_where_the_ego_is(sampler):
    theta = RuleDriver(Refined(sampler), 2).theta(case_of(ego=(0.0, 1.5, 0.0, 2.0)).scene)
    np.testing.assert_allclose(theta[:, 0], -0.3, atol=1e-6)
    np.testing.assert_allclose(theta[:, 1], 5.0)
    np.testing.assert_allclose(theta[:, 2:4], [[-1.0, 1.8], [-1.0, 1.0], [-1.0, 1.0]], atol=1e-5)


@pytest.fixture(scope="module")
def kept(log, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pstl") / "run"
    few = log.subset(episodes=np.arange(3))
    return folder, few, learn("pstl", few, env="lane-scene", seeds=2, folder=folder, **SMALL)


def test_each_stage_is_a_run_in_the_folder_of_the_recipe_and_the_policy_drives(kept):
    folder, _, run = kept
    stages = {path.parent.name for path in folder.glob("*/config.json")}
    assert stages == {"diffusion", "refine-0", "refine-1"}
    assert run.plans is not None and run.diffusion is not None and len(run.states) == 2
    assert not same(run.states[0].sampler.network, run.states[1].sampler.network)
    for state, cloned in zip(run.states, run.diffusion.states, strict=True):
        assert same(state.sampler.network, cloned.network)  # frozen
    found = habitus.evaluate(run.policy, "lane-scene", episodes=2)
    assert np.isfinite(np.asarray(found.returns)).all()


def test_a_finished_stage_is_not_repeated(kept, monkeypatch):
    from habitus.train import engine

    folder, few, run = kept
    monkeypatch.setattr(engine.PureEngine, "advance", lambda *_: pytest.fail("a stage was repeated"))
    again = learn("pstl", few, env="lane-scene", seeds=2, folder=folder, resume=True, **SMALL)
    assert same(again.states, run.states)


def test_a_row_of_the_pool_holds_plans_of_one_case(sampler, real):
    pool = drawn(sampler, real, 5, 4, KEY)
    assert len(pool) == 5 and pool.canonical().action.shape == (5, 4 * 2 * T)
    for row in range(2):
        plans = jnp.asarray(pool.canonical().action[row]).reshape(4, T, 2)
        rho = rho_of(Case.of(jnp.asarray(pool.canonical().obs[row])), plans)
        assert float((rho > 0).mean()) == pytest.approx(float(pool.reward[row]))


def test_what_does_not_fit_is_refused_before_anything_is_optimised(log, real, monkeypatch):
    monkeypatch.setattr(
        "habitus.methods.generative.pstl.augmented", lambda *_, **__: pytest.fail("something was optimised")
    )
    for bad, said in (
        ({"horizon": 1}, "horizon must be 2"), ({"pool": 0}, "pool must be 1"), ({"siblings": 5}, "multiple of the 2"),
        ({"levels": 0}, "levels"), ({"noise_share": 0.0}, "noise_share"), ({"temperature": 0.0}, "temperature"),
        ({"search_iterations": 0}, "iterations"), ({"stl_weight": -1.0}, "stl_weight"), ({"levles": 3}, "did you mean"),
        ({"env": "pendulum"}, "about lane-scene"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            learn("pstl", log, **({"env": "lane-scene"} | bad))
    with pytest.raises(ConfigError, match="learns from env="):
        learn("pstl", log)
    with pytest.raises(SpaceMismatch, match="13 numbers"):
        learn("pstl", habitus.load("pendulum-random"), env="lane-scene")
    with pytest.raises(DataError, match="no episode of"):
        learn("pstl", log, env="lane-scene", horizon=41)
    with pytest.raises(SpaceMismatch, match="plans_of"):
        PlanDiffusion().init(log.spec, KEY)
    with pytest.raises(ConfigError, match="give sampler="):
        Refiner().init(real.spec, KEY)
    assert world_of(habitus.make("lane-scene", width=4.0)).width == 4.0


def test_a_refiner_wants_rows_of_as_many_siblings(sampler, real):
    with pytest.raises(SpaceMismatch, match="a row must hold 32 plans of 40 numbers"):
        Refiner(sampler=sampler).init(real.spec, KEY)
