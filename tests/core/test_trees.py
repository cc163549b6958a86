"""Tools over pytrees."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from habitus.core import trees

KEY = jax.random.key(0)


class Net(eqx.Module):
    weight: jax.Array
    steps: jax.Array
    name: str = eqx.field(static=True, default="net")


def net(value=1.0):
    return Net(jnp.full(3, value), jnp.int32(7))


def test_polyak_moves_real_leaves_and_leaves_the_rest():
    moved = trees.polyak(net(1.0), Net(jnp.full(3, 5.0), jnp.int32(9)), 0.25)
    np.testing.assert_allclose(moved.weight, 2.0)
    assert int(moved.steps) == 7
    same = trees.polyak(net(1.0), net(5.0), 1.0)
    np.testing.assert_array_equal(same.weight, net(5.0).weight)


def test_a_copy_owns_its_buffers():
    original = net()
    copied = trees.copy(original)
    assert copied.weight.unsafe_buffer_pointer() != original.weight.unsafe_buffer_pointer()
    eqx.filter_jit(lambda x: x, donate="all")(original)
    np.testing.assert_array_equal(copied.weight, 1.0)


def test_selecting_takes_a_whole_tree_keys_included():
    yes, no = (net(1.0), jax.random.key(1)), (net(2.0), jax.random.key(2))
    for condition, expected in ((True, yes), (False, no)):
        found = jax.jit(trees.select)(jnp.array(condition), yes, no)
        assert eqx.tree_equal(found, expected)


def test_descending_changes_the_network_alone():
    target = jnp.array([1.0, 2.0, 3.0])
    sgd = optax.sgd(0.1)

    def loss(network, wanted):
        error = ((network.weight - wanted) ** 2).sum()
        return error, {"error": error}

    before = net(0.0)
    after, _, metrics = trees.descend(sgd, loss, before, sgd.init(trees.trainable(before)), target)
    np.testing.assert_allclose(after.weight, 0.2 * target, rtol=1e-6)
    assert metrics["error"] == 14.0 and after.steps == 7


def test_every_acts_on_multiples_and_its_metrics_average_to_those_of_the_acts():
    def act(state, by):
        return state + by, {"seen": state}

    def step(state, i):
        return trees.every(3, i, act, state, 10.0)

    state, metrics = jax.lax.scan(step, jnp.float32(0.0), jnp.arange(1, 10))
    assert state == 30.0  # at 3, 6 and 9
    np.testing.assert_allclose(metrics["seen"].mean(), np.mean([0.0, 10.0, 20.0]), rtol=1e-6)
    always, _ = trees.every(1, jnp.int32(5), act, jnp.float32(0.0), 10.0)
    assert always == 10.0


def visits(rows, size, epochs):
    """Which rows each minibatch held, [epochs * batches, size], and the metrics."""
    count = epochs * (rows // min(size, rows))

    def act(state, batch, key):
        seen, n = state
        return (seen.at[n].set(batch["row"]), n + 1), {"mean": batch["row"].mean()}

    state = jnp.full((count, min(size, rows)), -1), jnp.int32(0)
    (seen, n), metrics = trees.minibatches(act, state, {"row": jnp.arange(rows)}, KEY, epochs, size)
    assert n == count
    return np.asarray(seen), metrics


def test_minibatches_visit_every_row_once_an_epoch_in_another_order():
    seen, metrics = visits(rows=12, size=4, epochs=2)
    first, second = seen[:3].ravel(), seen[3:].ravel()
    assert sorted(first) == sorted(second) == list(range(12))
    assert list(first) != list(second) != list(range(12))
    np.testing.assert_allclose(metrics["mean"], 5.5)


def test_a_last_smaller_minibatch_is_left_out_and_a_small_batch_is_one():
    seen, _ = visits(rows=11, size=4, epochs=1)
    assert len(set(seen.ravel())) == 8
    seen, _ = visits(rows=3, size=64, epochs=2)
    assert seen.shape == (2, 3)


def test_small_tools():
    tree = {"a": np.arange(6).reshape(3, 2), "b": jnp.ones(3), "c": "text"}
    assert trees.batch_size({k: tree[k] for k in "ab"}) == 3
    assert trees.take(tree, 1)["a"].tolist() == [2, 3] and trees.take(tree, 1)["c"] == "text"
    assert isinstance(trees.to_numpy(tree)["b"], np.ndarray)
    assert set(trees.prefixed("actor", {"loss": jnp.ones(())})) == {"actor/loss"}
    assert not trees.not_finite(net()) and not trees.not_finite({"n": jnp.arange(3)})
    assert trees.not_finite(net(jnp.nan)) and trees.not_finite([jnp.array([1.0, -jnp.inf])])
    assert trees.is_shared(trees.Shared(tree)) and not trees.is_shared(tree)


@pytest.mark.parametrize("n", [1, 2, 7, 1024, 4096, 5000])
def test_shuffled_is_a_permutation(n):
    order = trees.shuffled(jax.random.key(0), n)
    assert sorted(order.tolist()) == list(range(n))


def test_shuffled_puts_every_row_everywhere_alike():
    orders = np.asarray(jax.vmap(lambda k: trees.shuffled(k, 8))(jax.random.split(jax.random.key(1), 20_000)))
    share = np.stack([(orders == row).mean(0) for row in range(8)])
    # 64 shares with a standard error of 0.0023 each.
    assert np.abs(share - 1 / 8).max() < 0.0105
