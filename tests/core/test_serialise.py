"""Modules on disk."""

from __future__ import annotations

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import CheckpointError, SpaceMismatch
from habitus.core.policy import Deployed
from habitus.core.serialise import from_plain, load_module, save_module, to_plain
from habitus.core.spec import Spec
from habitus.nets.heads import DeterministicActor, TanhGaussianActor
from habitus.nets.mlp import MLP
from habitus.nets.normalise import Standardiser
from habitus.nets.policies import Deterministic, Mode, Noisy, Normalised

KEY = jax.random.key(0)
SPEC = Spec(spaces.Box(-1, 1, (3,)), spaces.Box(np.float32([-2, 0]), np.float32([2, 5])), horizon=9)


def deployed():
    actor = DeterministicActor(SPEC, (4, 4), KEY)
    normaliser = Standardiser(jnp.array([0.1, 0.2, 0.3]), jnp.ones(3))
    return Deployed.of(Noisy(Normalised(Deterministic(actor), normaliser), 0.5), SPEC)


def saved(folder, change=None):
    """The folder of a saved policy; `change` alters its structure."""
    deployed().save(folder)
    if change:
        path = folder / "policy.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))
    return folder


def test_a_policy_comes_back_with_its_bits_and_its_spaces(tmp_path):
    policy = deployed()
    found = Deployed.load(policy.save(tmp_path / "policy"), SPEC)
    assert eqx.tree_equal(found, policy)
    obs = np.array([0.5, -0.5, 0.0], np.float32)
    np.testing.assert_array_equal(found.act(obs, seed=3), policy.act(obs, seed=3))
    assert found.spec.action_space == SPEC.action_space and found.spec.horizon == 9
    assert sorted(path.name for path in (tmp_path / "policy").iterdir()) == ["policy.json", "policy.safetensors"]


def test_every_kind_of_value_comes_back():
    class_of = MLP(2, (3,), 1, KEY)
    value = {"t": (1, 2.5, None), "l": [True, "text"], "a": np.arange(3), "b": jnp.float32(2), "m": class_of}
    arrays = {}
    plain = json.loads(json.dumps(to_plain(value, arrays)))
    found = from_plain(plain, arrays)
    assert found["t"] == (1, 2.5, None) and found["l"] == [True, "text"]
    assert found["a"].tolist() == [0, 1, 2] and found["b"].dtype == jnp.float32 and found["b"].shape == ()
    assert eqx.tree_equal(found["m"], class_of)


def test_keys_and_functions_are_not_saved():
    with pytest.raises(CheckpointError, match="noise is a random key"):
        to_plain({"noise": KEY}, {})
    with pytest.raises(CheckpointError, match="f is a function"):
        to_plain({"f": lambda: 0}, {})


def test_a_policy_for_other_spaces_is_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(SpaceMismatch, match="action space differs"):
        Deployed.load(tmp_path, Spec(SPEC.observation_space, spaces.Discrete(2)))


def test_a_module_of_another_kind_is_refused(tmp_path):
    save_module(TanhGaussianActor(SPEC, (4,), KEY), tmp_path, "policy")
    with pytest.raises(CheckpointError, match="holds a TanhGaussianActor, not a Deployed"):
        Deployed.load(tmp_path)


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "numpy:ndarray", "builtins:eval"])
def test_a_class_outside_habitus_is_refused_without_importing_it(name, tmp_path, monkeypatch):
    def change(data):
        data["module"]["class"] = name

    monkeypatch.setattr("importlib.import_module", lambda *_: pytest.fail("something was imported"))
    with pytest.raises(CheckpointError, match=f"'{name}', which is outside habitus; load it with allow="):
        load_module(saved(tmp_path, change), "policy", Deployed)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("habitus.core.policy:json", "is not a module"),
        ("habitus.core.spec:Spec", "is not a module"),
        ("habitus.core.policy:Missing", "does not have"),
        ("habitus.nowhere:Deployed", "does not have"),
    ],
)
def test_a_name_that_is_no_module_of_habitus_is_refused(name, why, tmp_path):
    def change(data):
        data["module"]["class"] = name

    with pytest.raises(CheckpointError, match=why):
        load_module(saved(tmp_path, change), "policy", Deployed)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"policy\.json does not exist"):
        Deployed.load(tmp_path / "nowhere")
    saved(tmp_path)
    (tmp_path / "policy.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"policy\.safetensors does not exist"):
        Deployed.load(tmp_path)


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "flipped"])
def test_damaged_files_are_refused(name, damage, tmp_path):
    path = saved(tmp_path) / name
    whole = path.read_bytes()
    flipped = bytes([whole[0] ^ 255]) + whole[1:]
    path.write_bytes(
        {"cut": whole[: len(whole) // 2], "empty": b"", "garbage": b"\x00\xff" * 99, "flipped": flipped}[damage]
    )
    with pytest.raises(CheckpointError, match=f"{tmp_path} is damaged"):
        Deployed.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("module"),
        lambda data: data.update(module=[1, 2]),
        lambda data: data["module"].pop("class"),
        lambda data: data["module"].pop("fields"),
        lambda data: data["module"].update(fields=[]),
        lambda data: data["module"].update({"class": 3}),
        lambda data: data["module"]["fields"].pop("policy"),
        lambda data: data["module"]["fields"].update(policy={"array": "nothing"}),
        lambda data: data["module"]["fields"].update(contract="not json"),
        lambda data: data["module"]["fields"].update(contract="[]"),
        lambda data: data["module"]["fields"].update(contract={"array": "policy.scale"}),
    ],
)
def test_a_structure_that_makes_no_sense_is_refused(change, tmp_path):
    with pytest.raises(CheckpointError):
        Deployed.load(saved(tmp_path, change), SPEC)


def test_a_policy_of_modes_can_be_saved(tmp_path):
    policy = Deployed.of(Mode(TanhGaussianActor(SPEC, (4,), KEY)), SPEC)
    assert eqx.tree_equal(Deployed.load(policy.save(tmp_path)), policy)
