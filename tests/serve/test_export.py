"""Exported policies act as the policies do, without habitus; what does not is refused."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from jax.extend.core import jaxpr_as_fun

from habitus.cli import main
from habitus.core.errors import CheckpointError, ConfigError, ExportError, MissingExtra
from habitus.core.policy import Deployed
from habitus.core.protocols import Policy
from habitus.core.spec import Spec
from habitus.data.dataset import Dataset
from habitus.methods.generative.flow_policy import FlowPolicy
from habitus.methods.offline.dt import DT
from habitus.nets.heads import DeterministicActor, StochasticActor
from habitus.nets.policies import Deterministic, Normalised, Sampling
from habitus.serve import lowering
from habitus.serve.export import TOLERANCE, difference, draw, export
from habitus.serve.lowering import lower
from habitus.serve.programs import programs
from habitus.train.loop import learn

EXAMPLE = Path(__file__).parents[2] / "examples" / "act_onnx.py"
KEY = jax.random.key(0)
BOX = spaces.Box(-1, 1, (2,), np.float32)
ACTION = spaces.Box(np.float32([-2, 0]), np.float32([1, 30]), dtype=np.float32)
DICT = spaces.Dict(
    {
        "speed": spaces.Box(-5, 5, (), np.float64),
        "at": spaces.Tuple([spaces.Box(0, 1, (2, 2), np.float32), spaces.Box(0, 9, (2,), np.int64)]),
        "kind": spaces.Discrete(3, start=1),
        "kinds": spaces.MultiDiscrete([2, 3]),
        "bits": spaces.MultiBinary(2),
        "image": spaces.Box(0, 255, (3,), np.uint8),
    }
)


def log(action_space: spaces.Space) -> Dataset:
    """Four episodes of six steps."""
    rng, rows = np.random.default_rng(0), 24
    action_space.seed(0)
    return Dataset.from_arrays(
        obs=rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        action=np.stack([action_space.sample() for _ in range(rows)]),
        reward=rng.normal(size=rows).astype(np.float32),
        terminated=np.zeros(rows, bool),
        truncated=np.arange(1, rows + 1) % 6 == 0,
        observation_space=BOX,
        action_space=action_space,
    )


def untrained(learner, action_space) -> Deployed:
    spec = log(action_space).spec
    return Deployed.of(learner.policy(learner.init(spec, KEY)), spec)


def of_dict() -> Deployed:
    spec = Spec(DICT, ACTION)
    return Deployed.of(Deterministic(DeterministicActor(spec, (8,), KEY)), spec)


def sampling() -> Deployed:
    spec = Spec(BOX, spaces.MultiDiscrete([2, 3]))
    return Deployed.of(Sampling(StochasticActor(spec, (8,), KEY)), spec)


class Odd(Policy):
    """Looks at nothing; its carry holds a key, a part that stays and a count; it draws in a loop and in a branch."""

    def init(self):
        return {"key": jax.random.key(3), "fixed": jnp.float32(2.5), "count": 0, "earned": jnp.zeros(())}

    def rewarded(self, carry, reward):
        return carry | {"earned": carry["earned"] + reward}

    def __call__(self, obs, carry, key):
        own, kept = jax.random.split(carry["key"])
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(3))
        total, _ = jax.lax.scan(lambda c, k: (c + jax.random.normal(k), None), jnp.zeros(()), keys)
        odd = jax.lax.cond(carry["count"] % 2 == 1, lambda: jax.random.uniform(own), lambda: carry["earned"])
        action = jnp.tanh(jnp.stack([total, odd]))
        return action, carry | {"key": kept, "count": carry["count"] + 1}


POLICIES = {
    "discrete carry": lambda: untrained(DT(width=8, layers=1, context=3), spaces.Discrete(3, start=2)),
    "real carry": lambda: untrained(DT(width=8, layers=1, context=3), ACTION),
    "chunks": lambda: untrained(FlowPolicy(predicted=5, observed=2, executed=2, width=8, blocks=1), ACTION),
    "dict": of_dict,
    "sampling": sampling,
    "odd": lambda: Deployed.of(Odd(), Spec(BOX, ACTION)),
}


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    """A run of TD3+BC on a log of the pendulum."""
    folder = tmp_path_factory.mktemp("runs") / "td3bc"
    return learn("td3bc", data="pendulum-medium", steps=20, hidden=(8,), batch_size=16, evaluations=0, folder=folder)


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def acted(folder):
    """The policy of the example, around exported files."""
    spec = importlib.util.spec_from_file_location("act_onnx", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.OnnxPolicy(folder)


# --- that they act alike


PAIRS = [(name, to) for to in TOLERANCE for name in POLICIES if (name, to) != ("odd", "safetensors")]


@pytest.mark.parametrize("name, to", PAIRS)
def test_what_is_exported_acts_as_the_policy_does(name, to, tmp_path):
    policy = POLICIES[name]()
    told = manifest(export(policy, to, tmp_path, episodes=2, steps=4))
    assert max(told["check"]["largest_difference"].values()) <= TOLERANCE[to]
    assert list(told["programs"]) == (["act", "rewarded"] if "carry" in name or name == "odd" else ["act"])
    inputs = {slot["name"] for slot in told["programs"]["act"]["inputs"]}
    assert ("seed" in inputs) == (name in ("discrete carry", "chunks", "sampling", "odd"))


def test_a_run_acts_in_gymnasium_without_jax_and_habitus(pendulum, tmp_path, capsys):
    main(["export", str(pendulum.folder), "--to", "onnx"])
    said = capsys.readouterr().out.splitlines()
    folder = pendulum.folder / "export" / "onnx"
    assert said[-1] == str(folder) and said[0].startswith("acts as the policy does")
    obs = np.float32([0.6, 0.8, -0.5])
    np.testing.assert_allclose(acted(folder).act(obs), pendulum.policy.act(obs), atol=1e-4)
    code = (
        "import sys, runpy; sys.modules.update(jax=None, habitus=None)\n"
        f"sys.argv = ['act_onnx', {str(folder)!r}, 'Pendulum-v1', '--episodes', '1']\n"
        f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("episode 0: -"), done.stderr


def test_a_greedy_policy_needs_no_seed(tmp_path):
    run = learn("dqn", env="cartpole", steps=1100, hidden=(8,), evaluations=0)
    told = manifest(export(run.policy, "onnx", tmp_path))
    assert [slot["name"] for slot in told["programs"]["act"]["inputs"]] == ["obs"]
    policy, rng, actions = acted(tmp_path), np.random.default_rng(0), []
    for obs in rng.normal(size=(20, 4)).astype(np.float32):
        actions.append(int(policy.act(obs)))
        assert actions[-1] == run.policy.act(obs)


def test_the_example_goes_through_an_episode_as_a_session_does(tmp_path):
    """With the keys of the session as seeds, memory, rewards and an observation in parts."""
    policy = POLICIES["discrete carry"]()
    onnx, session = acted(export(policy, "onnx", tmp_path)), policy.session(seed=5)
    keys = [session.key, *(jax.random.fold_in(session.key, i) for i in range(1, 12))]
    for _ in range(2):
        rng, actions = np.random.default_rng(1), []
        for key in keys:
            onnx.rng = type("Keys", (), {"integers": lambda *_, key=key: np.asarray(jax.random.key_data(key))})
            obs, reward = rng.normal(size=2).astype(np.float32), float(rng.normal())
            actions.append(int(onnx.act(obs)))
            assert actions[-1] == session.act(obs)
            onnx.reward(reward)
            session.reward(reward)
            np.testing.assert_allclose(onnx.carry["carry.1"], session.carry[1], rtol=1e-6)
        assert len(set(actions)) > 1
        onnx.reset()
        session.reset()
        session.tick = 0


def test_an_observation_in_parts_is_taken_apart_by_its_paths(tmp_path):
    policy = of_dict()
    export(policy, "onnx", tmp_path, episodes=1, steps=1)
    onnx = acted(tmp_path)
    for obs in (DICT.sample(), DICT.sample()):
        np.testing.assert_allclose(onnx.act(obs), policy.act(obs), rtol=1e-5, atol=1e-5)


# --- what is told and refused


def test_a_difference_is_told_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(lowering.RULES, "erf_inv", lambda params, x: [0.99 * x])
    spec = Spec(BOX, ACTION)
    policy = Deployed.of(Sampling(StochasticActor(spec, (8,), KEY)), spec)
    with pytest.raises(ExportError, match="differs from the policy by .* in action, in step 1 of random episode 1"):
        export(policy, "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class Grows(Policy):
    """A carry that is not what it was."""

    def init(self):
        return jnp.zeros(1)

    def __call__(self, obs, carry, key):
        return obs[:2], jnp.concatenate([carry, carry])


class Changes(Grows):
    def __call__(self, obs, carry, key):
        return obs[:2], (carry, carry)


class Twice(Policy):
    def init(self):
        return {"a.b": jnp.zeros(1), "a": {"b": jnp.zeros(1)}}

    def __call__(self, obs, carry, key):
        return obs[:2], carry


class Other(Policy):
    def __call__(self, obs, carry, key):
        return obs[:2], carry


class OtherKeys(Policy):
    def __call__(self, obs, carry, key):
        return jax.random.normal(jax.random.key(0, impl="rbg"), (2,)), carry


class Gamma(Policy):
    def __call__(self, obs, carry, key):
        return jax.random.gamma(key, 2.0, (2,)), carry


class Branches(Policy):
    """Three of them, where ONNX has two."""

    def __call__(self, obs, carry, key):
        which = jnp.int32(obs[0] + 2)
        return jax.lax.switch(which, [lambda: obs, lambda: -obs, lambda: 2 * obs]), carry


@pytest.mark.parametrize(
    "policy, says",
    [
        (Grows(), r"next is float32\[1\] at first, but float32\[2\] after a step"),
        (Changes(), "the carry begins as .* but goes on as"),
        (Twice(), "two parts would be called carry.a.b"),
        (OtherKeys(), "draws random numbers by rbg"),
        (Gamma(), "draws random numbers by random_gamma"),
        (Branches(), "act of this policy cannot be said in ONNX .*; export it to stablehlo"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Policy) else "",
)
def test_what_cannot_be_exported_is_one_sentence(policy, says, tmp_path):
    with pytest.raises(ExportError, match=says) as refused:
        export(Deployed.of(policy, Spec(BOX, ACTION)), "onnx", tmp_path / "out")
    assert len(str(refused.value).splitlines()) == 1 and list(tmp_path.iterdir()) == []


def test_classes_of_others_are_not_in_habitus_and_so_their_weights_alone_are_no_policy(tmp_path):
    with pytest.raises(CheckpointError, match="which is outside habitus"):
        export(Deployed.of(Other(), Spec(BOX, ACTION)), "safetensors", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_arguments_out_of_their_domain_are_refused(tmp_path, monkeypatch):
    for arguments in (dict(to="onxx"), dict(steps=0), dict(policy=Odd())):
        with pytest.raises(ConfigError):
            export(**dict(policy=of_dict(), to="onnx", folder=tmp_path / "out") | arguments)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for to in ("onnx", "stablehlo"):
        with pytest.raises(MissingExtra, match=rf"habitus\[{to}\]"):
            export(of_dict(), to, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_a_policy_that_is_not_there(pendulum, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(pendulum.folder), "--to", "onnx", "--policy", "1"])
    assert stopped.value.code == 2 and "--policy must be from 0 to 0" in capsys.readouterr().err


# --- the parts


def test_random_numbers_are_the_same_bits_without_keys():
    def drawn(data, logits):
        key = jax.random.wrap_key_data(data)
        one, two = jax.random.split(key)
        many = jax.random.split(two, (2, 3))
        again = jax.lax.while_loop(lambda c: c[1] < 3, lambda c: (jax.random.split(c[0])[1], c[1] + 1), (one, 0))[0]
        return [
            jax.random.normal(one, (500,)),
            jax.random.uniform(two, (500,), minval=-3.0),
            jax.random.categorical(one, logits),
            jax.random.permutation(two, 7),
            jax.vmap(jax.vmap(lambda k: jax.random.bernoulli(k, 0.3)))(many),
            jax.random.key_data(jax.lax.cond(logits[0] > 0, lambda: one, lambda: again)),
            jax.random.randint(jax.random.fold_in(jax.random.key(7), logits.shape[0]), (5,), -9, 9),
        ]

    structs = [jax.ShapeDtypeStruct((2,), jnp.uint32), jax.ShapeDtypeStruct((3,), jnp.float32)]
    plain = lower(drawn, structs)
    assert not any(jnp.issubdtype(v.aval.dtype, jax.dtypes.prng_key) for e in plain.jaxpr.eqns for v in e.outvars)
    theirs, ours = jax.jit(jaxpr_as_fun(plain)), jax.jit(drawn)
    for data in (np.uint32([0, 0]), np.uint32([2**32 - 1, 12345])):
        given = data, np.float32([data[1], 0.5, -1])
        for a, b in zip(ours(*given), theirs(*given), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_bits_of_a_float_are_read_exactly():
    bits = np.random.default_rng(0).integers(0, 0x7F800000, 1000, dtype=np.uint32)
    bits = np.concatenate([bits, bits | np.uint32(2**31), np.uint32([0x3F800000, 1, 0])])
    normal = (bits & 0x7F800000) > 0  # XLA's CPU code takes denormal numbers for 0
    (found,) = lowering.RULES["bitcast_convert_type"]({"new_dtype": np.dtype(np.float32)}, jnp.asarray(bits))
    np.testing.assert_array_equal(np.asarray(found)[normal], bits.view(np.float32)[normal])
    with pytest.raises(ExportError, match="reads the bits of int32 as float32"):
        lowering.RULES["bitcast_convert_type"]({"new_dtype": np.dtype(np.float32)}, jnp.zeros(1, jnp.int32))


def test_random_observations_lie_in_their_space():
    rng = np.random.default_rng(0)
    wide = spaces.Box(np.float32([-np.inf, -3e38, 270]), np.float32([np.inf, 3e38, 300]), dtype=np.float32)
    for space in (DICT, wide, BOX):
        for _ in range(20):
            seen = draw(space, rng)
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(seen))
            for part, whole in ((seen, space),) if space is not DICT else ((seen[k], DICT[k]) for k in DICT):
                inner = zip(part, whole, strict=True) if isinstance(whole, spaces.Tuple) else ((part, whole),)
                assert all(w.contains(np.asarray(x, w.dtype)) for x, w in inner), (part, whole)


@pytest.mark.parametrize(
    "a, b, apart",
    [
        ([1.0, 100.0], [1.0, 100.5], 0.005),
        ([0.1], [0.2], 0.1),
        ([np.inf, np.nan, 1.0], [np.inf, np.nan, 1.0], 0.0),
        ([np.inf], [1.0], np.inf),
        ([1.0], [np.nan], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_how_far_arrays_are_apart(a, b, apart):
    assert difference(np.asarray(a), np.asarray(b)) == pytest.approx(apart)


def test_normalisation_is_inside():
    """And so the observation is the user's: a standardised policy reads what the log's mean says."""
    from habitus.nets.normalise import Standardiser

    spec = Spec(BOX, ACTION)
    policy = Normalised(Deterministic(lambda x: x), Standardiser(jnp.float32([1, 2]), jnp.float32([2, 2])))
    (act,), carry = programs(Deployed.of(policy, spec))
    assert carry == [] and act.name == "act"
    canonical = np.clip((np.float32([2, 0]) - [1, 2]) / 2, -1, 1)
    np.testing.assert_allclose(act.call(np.float32([2, 0]))[0], [-0.5 + 1.5 * canonical[0], 15 + 15 * canonical[1]])
