"""What holds for every learner: a learner that is added later is tested by being there."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from functools import cache, partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from settings import (
    ANY,
    BAD,
    PLAIN,
    PLAIN_OF,
    ROLES,
    SPACES,
    Identity,
    given_two_states,
    learners,
    log,
    mean_reward,
    numeric,
    one_batch,
    planned,
    run_updates,
    settings,
    two_states,
)  # fmt: skip

from habitus.core.card import cards
from habitus.core.errors import ConfigError, SpaceMismatch
from habitus.core.protocols import Learner
from habitus.core.trees import is_array, trainable
from habitus.methods.generative.reinflow import WindowValue
from habitus.nets.heads import Critic, DiscreteCritic, DuelingCritic, Ensemble, Value
from habitus.nets.losses import pick
from habitus.train.loop import learn

ROOT = Path(__file__).parents[1]
SETTINGS = settings()
every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=str)
every_learner = pytest.mark.parametrize("slug", learners())
every_method = pytest.mark.parametrize("card", cards().values(), ids=lambda card: card.slug)


def same_bits(a, b) -> bool:
    """Whether two trees hold the same arrays, bit for bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True) for x, y in pairs if is_array(x))


@cache
def three_seeds(setting):
    return learn(setting.learner, setting.source, setting.steps, seeds=3, points=1)


@cache
def one_seed(setting):
    return learn(setting.learner, setting.source, setting.steps, seeds=[1], points=1)


# --- 1. resume


@every_setting
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(setting, tmp_path):
    arguments = {"seeds": [1], "points": 1, "folder": tmp_path / "run", "checkpoints": 2}
    learn(setting.learner, setting.source, setting.steps, **arguments)
    first, second = sorted((tmp_path / "run" / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    assert 0 < 2 * int(first.name) <= int(second.name) + 1
    shutil.rmtree(second)
    resumed = learn(setting.learner, setting.source, setting.steps, resume=True, **arguments)
    assert second.exists()
    assert same_bits(resumed.states, one_seed(setting).states)


# --- 2. truncation is not termination


def value_of(network, batch):
    """Values [batch] of logged transitions, the mean over an ensemble."""
    if isinstance(network, (Value, WindowValue)):
        return jax.vmap(network)(batch.obs)
    if isinstance(network, (DiscreteCritic, DuelingCritic)):
        return pick(jax.vmap(network)(batch.obs), batch.action)
    if isinstance(network, Critic):  # one for each of two steps, stacked
        steps = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), (batch.obs, batch.action))
        return eqx.filter_vmap(lambda critic, *rows: jax.vmap(critic)(*rows))(network, *steps).ravel()
    assert isinstance(network, Ensemble), f"say here how the value of a {type(network).__name__} is read"
    return jax.vmap(network)(batch.obs, batch.action).mean(-1)


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.value_networks], ids=str)
def test_a_truncated_episode_bootstraps_and_a_terminated_one_does_not(setting):
    learner = setting.make(**PLAIN, **PLAIN_OF.get(setting.slug, {}))
    # 1 / (1 - 1/2); 1 + 1/2, and 1: as well at the end of a number of steps that belongs to the problem
    known = {"truncated": (1.5, 1.0) if setting.cls.from_start else (2.0, 2.0), "terminated": (1.5, 1.0)}
    for ends_as, (first, second) in known.items():
        given = given_two_states(setting.cls, setting.kind, learner.window, ends_as)
        batch = given.own if setting.cls.sides else given
        batch = two_states(setting.kind, (128,), ends_as) if learner.window else batch
        spec = dataclasses.replace(planned(setting), horizon=2)
        if setting.cls.from_start and setting.cls.sides:
            spec = dataclasses.replace(spec, dataset=log(setting.kind, expert=False, length=2))
        state = run_updates(learner, learner.init(spec, jax.random.key(0)), given, 500)
        seen = jax.tree.map(lambda x: x.reshape(128, *x.shape[2:]), batch) if setting.cls.on_policy else batch
        seen = state.normaliser.transition(seen) if hasattr(state, "normaliser") else seen
        for name in setting.value_networks:
            value = value_of(getattr(state, name), seen)
            in_second = batch.obs.reshape(128, 2)[:, 1] == 1
            np.testing.assert_allclose(value, jnp.where(in_second, second, first), atol=0.1, err_msg=ends_as)


# --- 3. gradient isolation

scan = jax.lax.scan


def looped(body, init, xs=None, length=None, reverse=False, unroll=1, *, owner_of, own):
    """`jax.lax.scan` as a loop in Python, so that what its body does can be seen from outside.

    A row of stacked networks belongs to whom the stack belongs.
    """
    rows = range(jax.tree.leaves(xs)[0].shape[0] if length is None else length)
    if not rows:
        return scan(body, init, xs, length)

    def row(x, i):
        part = x[i]
        own(owner_of(x), part)
        return part

    carry, out = init, {}
    for i in reversed(rows) if reverse else rows:
        carry, out[i] = body(carry, jax.tree.map(partial(row, i=i), xs))
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *(out[i] for i in rows))


def flows(tree) -> dict[str, jax.Array]:
    """For each real leaf of a gradient, whether it is anything but zero."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): jnp.any(leaf != 0) for path, leaf in leaves if eqx.is_inexact_array(leaf)}


def crosstalk(gradient, network) -> jax.Array:
    """How much the gradient in the first member of an ensemble changes as the second one does."""
    other = jax.tree.map(lambda x: x + 1 if eqx.is_inexact_array(x) else x, network.members[1])
    moved = eqx.tree_at(lambda e: e.members[1], network, other)
    pairs = zip(*(jax.tree.leaves(trainable(gradient(n).members[0])) for n in (network, moved)), strict=True)
    return jnp.stack([jnp.abs(x - y).max() / (1e-6 + jnp.abs(x).max()) for x, y in pairs]).max()


def look_into(setting, monkeypatch) -> dict[tuple[str, str], dict]:
    """For each (network, loss) of a gradient step within one update, where the gradient of that loss flows.

    Answers for each first such step: 'network', leaf by leaf; 'state', the same for the state that the loss
    is given besides; and 'crosstalk' between the members of an ensemble.
    """
    learner = setting.make(epochs=1, inner_steps=1, value_epochs=1)
    owner, kept, found = {}, [], {}

    def owner_of(leaf):
        return owner.get(id(leaf))

    def own(name, network):
        if name is None:
            return
        leaves = jax.tree.leaves(trainable(network))
        kept.extend(leaves)  # alive, so that no other array gets the same identity
        owner.update({id(leaf): name for leaf in leaves})

    def recorded(original, rule, loss, network, other, *args):
        names = {owner_of(leaf) for leaf in jax.tree.leaves(trainable(network))}
        after = original(rule, loss, network, other, *args)
        if names == {None}:  # a rehearsal that asks only for shapes
            return after
        assert len(names) == 1, f"{loss.__name__} steps on a mixture of {names}"
        name = names.pop()
        own(name, after[0])
        if (name, loss.__name__) not in found:
            state, *rest = args
            gradient = eqx.filter_grad(lambda n: loss(n, *args)[0])
            through = eqx.filter_grad(lambda s: loss(network, s, *rest)[0])(state)
            found[name, loss.__name__] = {"network": flows(gradient(network)), "state": flows(through)} | (
                {"crosstalk": crosstalk(gradient, network)} if isinstance(network, Ensemble) else {}
            )
        return after

    for module in {sys.modules[cls.__module__] for cls in setting.cls.__mro__}:
        for step in ("descend", "trust_region_step", "constrained_step"):
            if hasattr(module, step):
                monkeypatch.setattr(module, step, partial(recorded, getattr(module, step)))
    monkeypatch.setattr(jax.lax, "scan", partial(looped, owner_of=owner_of, own=own))
    monkeypatch.setattr(jax.lax, "cond", lambda condition, yes, no, *args: yes(*args))  # so that nothing is delayed

    @eqx.filter_jit
    def one_update(state, batch, key):
        for field in dataclasses.fields(state):
            own(field.name, getattr(state, field.name))
        learner.update(state, batch, key)
        return found

    state = learner.init(planned(setting), jax.random.key(0))
    return one_update(state, one_batch(setting, learner, state), jax.random.key(4))


@every_setting
def test_a_loss_reaches_the_networks_that_are_declared_and_no_other(setting, monkeypatch):
    found = look_into(setting, monkeypatch)
    assert set(found) == {(name, loss) for name, losses in setting.cls.trains.items() for loss in losses}
    for (name, loss), seen in found.items():
        assert seen["network"] and all(seen["network"].values()), f"{loss} does not reach all of {name}: {seen}"
        assert seen.get("crosstalk", 0.0) < 1e-5, f"the step of one of {name} depends on the other"
        leaks = [leaf for leaf, flow in seen["state"].items() if flow]
        if ROLES[name] == "value":
            assert not leaks, f"the target in {loss} has a gradient in {leaks}, and should be constant"
        assert not [leaf for leaf in leaks if "target_" in leaf]


# --- 4. it learns


@every_setting
def test_it_learns_a_world_whose_best_policy_is_known(setting):
    run = three_seeds(setting)
    assert all(np.isfinite(values).all() for name, values in run.history.items() if not name.startswith("episode/"))
    # always the same action earns -0.25 or -0.5, uniformly random ones earn -0.58 or -0.5
    assert all(mean_reward(policy, setting.kind) > -0.1 for policy in run.policies)


# --- 5. same seed, same bits


@every_setting
def test_the_same_seed_gives_the_same_bits(setting):
    again = learn(setting.learner, setting.source, setting.steps, seeds=[1], points=1)
    assert same_bits(again.states, one_seed(setting).states)


@every_setting
def test_a_seed_among_several_gives_the_bits_it_gives_alone(setting):
    assert same_bits(three_seeds(setting).states[1], one_seed(setting).states[0])
    assert not same_bits(*three_seeds(setting).states[:2])


@every_setting
def test_a_policy_maps_over_a_batch(setting):
    learner = setting.learner
    state = jax.tree.map(jnp.asarray, one_seed(setting).states[0])
    obs, keys = jax.random.normal(jax.random.key(0), (4, 2)), jax.random.split(jax.random.key(1), 4)
    for policy in (learner.policy(state), learner.explorer(state)):
        together, _ = jax.vmap(lambda o, k, p=policy: p(o, p.init(), k))(obs, keys)
        alone = [policy(o, policy.init(), k)[0] for o, k in zip(obs, keys, strict=True)]
        np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-5, atol=1e-6)


# --- 6. bad input


@every_learner
def test_a_bad_hyperparameter_is_refused_where_it_is_given(slug):
    _, cls = learners()[slug]
    for name, real in numeric(cls).items():
        assert name in BAD or name in ANY, f"say in settings.py which values of {name} are bad"
        for value in (*BAD.get(name, ()), *([float("nan")] if real and name in BAD else [])):
            with pytest.raises(ConfigError, match=name):
                cls(**{name: value})
    if "hidden" in cls.__dataclass_fields__:
        with pytest.raises(ConfigError, match="hidden layers must have 1 unit or more"):
            cls(hidden=(8, 0))


@every_learner
def test_an_unknown_hyperparameter_is_refused_with_what_is_near(slug):
    with pytest.raises(ConfigError, match="did you mean"):
        learn(slug, log("discrete", expert=True), learning_rates=1e-3)


@every_learner
def test_actions_that_it_cannot_take_are_refused_before_anything_is_compiled(slug):
    card, cls = learners()[slug]
    handled = {s.kind for s in SETTINGS if s.slug == slug}
    assert handled and handled <= set(card.actions)
    with jax.check_tracer_leaks(False):
        for kind in set(SPACES) - handled:
            given = Identity(kind) if cls.on_policy and not cls.sides else log(kind, expert=False)
            world = Identity(kind) if cls.sides else None
            with pytest.raises(SpaceMismatch, match="actions, but the action space is"):
                learn(cls(), given, steps=2048, env=world)


def test_a_learner_that_must_act_refuses_a_log():
    for slug, (_, cls) in learners().items():
        if cls.on_policy and cls.world is Learner.world:
            with pytest.raises(ConfigError, match="its own actions|both env"):
                learn(slug, log("discrete", expert=False))


# --- 7. it can be looked up


@every_method
def test_it_can_be_cited(card):
    text = card.bibtex()
    assert text.count("{") == text.count("}") and re.match(r"@\w+\{[a-z0-9-]+,\n", text)
    for field in ("title", "author", "year"):
        assert re.search(rf"^  {field} = \{{.*[^{{}}\s].*\}},$", text, re.M), field
    assert 1900 < card.year < 2100 and " and " not in card.authors.split(" and ")[0]


@every_method
def test_it_has_a_page(card):
    page = ROOT / "docs" / "methods" / f"{card.slug}.md"
    assert page.exists(), f"{card.slug} has no page docs/methods/{card.slug}.md"
    assert card.title.rstrip(".") in page.read_text(encoding="utf-8").replace("\n", " ")


RESULT_FIELDS = {
    "slug", "paper", "title", "claim", "verdict", "smoke", "measures", "seeds", "budget", "wall_seconds", "command",
    "machine", "versions", "commit", "date", "notes", "figures",
}  # fmt: skip


@pytest.mark.parametrize("card", [c for c in cards().values() if c.paper], ids=lambda card: card.slug)
def test_a_paper_has_a_claim_and_its_result_or_says_that_it_was_not_run(card):
    claim = ROOT / "src" / "habitus" / "claims" / card.family / f"{card.slug.replace('-', '_')}.py"
    assert claim.exists(), f"{card.slug} has no claim"
    path = ROOT / "results" / f"{card.slug}.json"
    if not path.exists():
        assert f"| {card.slug} | not run yet |" in (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
        return
    result = json.loads(path.read_text())
    assert set(result) >= RESULT_FIELDS
    assert result["slug"] == card.slug and result["smoke"] is False
    assert result["verdict"] in ("reproduced", "not reproduced", "inconclusive") and result["measures"]
    for measure in result["measures"]:
        assert {"name", "ours", "baseline", "difference", "ci", "condition", "holds"} <= set(measure)
