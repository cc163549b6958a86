"""Signal temporal logic against the definition read out loud, against rtamt, and against its own algebra."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core import stl
from habitus.core.errors import ConfigError, DataError, FormulaError

NAMES = ("x", "y", "z")
LENGTHS = (2, 3, 6, 13)


# --- random formulas as plain tuples, and what they mean


def random_formula(rng, depth):
    """(kind, ...) with intervals that often reach past the end of a trace."""
    if depth == 0 or rng.random() < 0.15:
        name, symbol = NAMES[rng.integers(3)], (">=", "<=", ">", "<")[rng.integers(4)]
        return "atom", name, symbol, float(np.round(rng.normal(), 2)), float(np.round(rng.normal(), 2))
    kind = ("not", "and", "or", "implies", "always", "eventually", "until")[rng.integers(7)]
    parts = [random_formula(rng, depth - 1) for _ in range(1 if kind in ("not", "always", "eventually") else 2)]
    if kind in ("not", "and", "or", "implies"):
        return kind, *parts
    start = int(rng.integers(0, 4))
    timed = rng.random() < 0.75
    return kind, (start, start + int(rng.integers(0, 7))) if timed else None, *parts


def text(formula):
    kind, *rest = formula
    if kind == "atom":
        name, symbol, factor, bound = rest
        return f"({factor} * {name} {symbol} {bound})"
    if kind == "not":
        return f"(not {text(rest[0])})"
    if kind in ("and", "or", "implies"):
        return f"({text(rest[0])} {kind} {text(rest[1])})"
    interval = "" if rest[0] is None else f"[{rest[0][0]},{rest[0][1]}]"
    if kind == "until":
        return f"({text(rest[1])} until{interval} {text(rest[2])})"
    return f"({kind}{interval} {text(rest[1])})"


def least(values):
    return min(values, default=math.inf)


def greatest(values):
    return max(values, default=-math.inf)


def meaning(formula, trace, t, low=least, high=greatest):
    """Robustness at step t, quantifier by quantifier."""
    kind, *rest = formula

    def at(part, u):
        return meaning(part, trace, u, low, high)

    if kind == "atom":
        name, symbol, factor, bound = rest
        return (factor * float(trace[name][t]) - bound) * (1 if symbol[0] == ">" else -1)
    if kind == "not":
        return -at(rest[0], t)
    if kind in ("and", "or", "implies"):
        left, right = (at(part, t) for part in rest)
        return low([left, right]) if kind == "and" else high([-left if kind == "implies" else left, right])
    steps = len(trace["x"])
    first, last = (0, steps) if rest[0] is None else rest[0]
    there = range(t + first, min(t + last, steps - 1) + 1)
    if kind == "until":
        return high([low([at(rest[2], u), *(at(rest[1], v) for v in range(t, u))]) for u in there])
    return (low if kind == "always" else high)([at(rest[1], u) for u in there])


def cases(seed, count=100):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        steps = LENGTHS[rng.integers(len(LENGTHS))]
        trace = {name: rng.normal(size=steps).astype(np.float32) for name in NAMES}
        yield random_formula(rng, int(rng.integers(1, 4))), trace


@cache
def ours(seed):
    """The cases of a seed, each with its robustness at every step."""
    found = [(f, trace, stl.robustness_signal(stl.parse(text(f), NAMES), trace)) for f, trace in cases(seed)]
    return [(f, trace, np.asarray(signal)) for f, trace, signal in found]


@pytest.mark.parametrize("seed", range(10))
def test_exact_robustness_is_that_of_the_definition(seed):
    for formula, trace, found in ours(seed):
        wanted = [meaning(formula, trace, t) for t in range(len(trace["x"]))]
        np.testing.assert_allclose(found, wanted, atol=1e-5, err_msg=text(formula))


@pytest.mark.parametrize("seed", range(10))
def test_exact_robustness_is_that_of_rtamt(seed):
    rtamt = pytest.importorskip("rtamt")
    for formula, trace, found in ours(seed):
        monitor = rtamt.StlDiscreteTimeOfflineSpecification()
        for name in (*NAMES, "out"):
            monitor.declare_var(name, "float")
        monitor.spec = f"out = {text(formula)}"
        monitor.parse()
        columns = {name: column.tolist() for name, column in trace.items()}
        wanted = monitor.evaluate({"time": list(range(len(trace["x"])))} | columns)
        np.testing.assert_allclose(found, [value for _, value in wanted], atol=1e-5, err_msg=text(formula))


def test_smooth_robustness_is_its_definition_and_keeps_its_bounds():
    temperature = 0.2

    def high(values):
        values = np.array(values)
        most = values.max(initial=-math.inf)
        return most if np.isinf(most) else most + temperature * np.log(np.exp((values - most) / temperature).sum())

    def low(values):
        return -high([-v for v in values])

    for formula, trace in cases(99, 30):
        read = stl.parse(text(formula), NAMES)
        found = np.asarray(stl.robustness_signal(read, trace, temperature=temperature))
        steps = len(trace["x"])
        wanted = np.array([meaning(formula, trace, t, low, high) for t in range(steps)])
        np.testing.assert_allclose(found, wanted, atol=2e-5, err_msg=text(formula))
        exact = np.array([meaning(formula, trace, t) for t in range(steps)])
        below, above = stl.smoothing_error(read, steps, temperature)
        known = np.isfinite(exact)
        assert (np.isinf(found) == ~known).all()
        assert (found >= exact - below - 1e-5)[known].all() and (found <= exact + above + 1e-5)[known].all()


# --- its algebra


def signals(steps=20, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=steps).astype(np.float32) for name in NAMES}


@pytest.mark.parametrize("temperature", [None, 0.3])
def test_de_morgan_holds_to_the_bit(temperature):
    def value(text):
        return stl.robustness_signal(stl.parse(text), signals(), temperature=temperature)

    np.testing.assert_array_equal(value("not always[2,6] x > 0"), value("eventually[2,6] not x > 0"))
    np.testing.assert_array_equal(value("not (x > 0 or y > 0)"), value("(not x > 0) and (not y > 0)"))
    np.testing.assert_array_equal(value("x > 0 -> y > 0"), value("(not x > 0) or y > 0"))


@pytest.mark.parametrize("n", [1, 2, 7, 19])
def test_always_over_a_constant(n):
    """The soft minimum of n equal values c is c - log(n) * temperature."""
    formula = stl.Always(stl.Affine({"x": 1.0}), 0, n - 1)
    found = stl.robustness(formula, {"x": jnp.full(20, 0.5)}, temperature=0.1)
    assert found == pytest.approx(0.5 - 0.1 * math.log(n), abs=1e-6)
    assert stl.smoothing_error(formula, 20, 0.1) == (pytest.approx(0.1 * math.log(n)), 0.0)


def test_smooth_robustness_goes_to_the_exact_one_as_it_cools():
    formula = stl.parse("always (x < 1.5 or eventually[0,4] (y > 0 until z > 1))")
    exact = stl.robustness_signal(formula, signals())
    errors = [np.abs(stl.robustness_signal(formula, signals(), temperature=t) - exact).max() for t in (1, 0.1, 1e-3)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.01


def test_only_what_is_to_come_counts():
    formula = stl.parse("(x > 0 until[1,4] y > 0) or always[2,5] z > 0")
    before, changed = signals(), signals(seed=1)
    mixed = {name: np.concatenate([changed[name][:8], before[name][8:]]) for name in NAMES}
    for temperature in (None, 0.1):
        a, b = (stl.robustness_signal(formula, trace, temperature=temperature) for trace in (before, mixed))
        np.testing.assert_array_equal(a[8:], b[8:])
        assert (a[:8] != b[:8]).any()


def test_until_that_must_also_hold_when_it_is_released():
    trace = {"x": jnp.array([1.0, 2.0, -1.0]), "y": jnp.array([-1.0, -1.0, 3.0])}
    assert stl.robustness(stl.parse("x > 0 until y > 0"), trace) == 1.0
    assert stl.robustness(stl.parse("x > 0 until (x > 0 and y > 0)"), trace) == -1.0


# --- as a function of arrays


def unicycle(controls):
    """States x, y, heading, speed at half a second a step."""

    def step(state, control):
        x, y, heading, speed = state
        turn, push = control
        moved = x + 0.5 * speed * jnp.cos(heading), y + 0.5 * speed * jnp.sin(heading)
        state = (*moved, heading + 0.5 * turn, speed + 0.5 * push)
        return state, state

    start = (jnp.zeros(()), jnp.zeros(()), jnp.zeros(()), jnp.asarray(4.0))
    states = jax.lax.scan(step, start, controls)[1]
    return dict(zip(("x", "y", "heading", "speed"), states, strict=True))


LANE_CHANGE = stl.parse(
    "always (speed >= low and speed <= high) and eventually[0,10) (y >= left - 0.5 and y <= left + 0.5)"
    " and eventually[0,10) always abs(heading) / most <= 1"
)
LIMITS = {"low": 1.0, "high": 6.0, "left": 2.0, "most": 0.4}


def test_the_gradient_is_that_of_finite_differences():
    with jax.enable_x64(True):
        controls = jnp.asarray(np.random.default_rng(0).normal(size=(20, 2)) * 0.2)
        for temperature in (None, 0.05):

            def value(controls, temperature=temperature):
                trace = unicycle(controls) | LIMITS
                return stl.robustness(LANE_CHANGE, trace, temperature=temperature)

            both = jax.jit(jax.value_and_grad(value))
            gradient = both(controls)[1]
            direction = jnp.asarray(np.random.default_rng(1).normal(size=(20, 2)))
            step = 1e-6 * direction
            slope = (both(controls + step)[0] - both(controls - step)[0]) / 2e-6
            assert jnp.abs(gradient).max() > 1e-3
            np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-3)


def test_ascent_makes_a_trajectory_satisfy_it():
    @jax.jit
    def climb(controls):
        def loss(controls):
            return -stl.robustness(LANE_CHANGE, unicycle(controls) | LIMITS, temperature=0.05)

        def step(controls, _):
            return controls - 0.02 * jax.grad(loss)(controls), None

        return jax.lax.scan(step, controls, length=300)[0]

    start = jnp.zeros((20, 2))
    assert stl.robustness(LANE_CHANGE, unicycle(start) | LIMITS) < 0
    assert stl.robustness(LANE_CHANGE, unicycle(climb(start)) | LIMITS) > 0


def test_parameters_and_traces_map_together():
    batch = {name: jnp.stack([signals(seed=s)[name] for s in range(3)]) for name in NAMES}
    batch["bound"] = jnp.array([-1.0, 0.0, 1.0])
    formula = stl.parse("always[0,9] x >= bound")
    found = jax.jit(jax.vmap(lambda trace: stl.robustness(formula, trace)))(batch)
    np.testing.assert_allclose(found, batch["x"][:, :10].min(1) - batch["bound"], rtol=1e-6)
    bounds = jnp.array([-1.0, 0.5])  # and the numbers of a formula are arrays like any others
    many = jax.vmap(lambda b: stl.robustness(stl.Always(stl.Affine({"x": 2.0}, -b), 0, 9), signals()))(bounds)
    np.testing.assert_allclose(many, 2 * signals()["x"][:10].min() - bounds, rtol=1e-6)


def test_a_predicate_is_any_function_of_one_step():
    trace = {"at": jnp.array([[3.0, 4.0], [6.0, 8.0], [0.0, 1.0]]), "radius": jnp.asarray(2.0)}
    far = stl.Predicate(lambda s: jnp.linalg.norm(s["at"]) - s["radius"], "far")
    assert stl.robustness_signal(far, trace).tolist() == [3.0, 8.0, -1.0]
    assert stl.robustness(stl.Always(far, 0, 1) & ~stl.Always(far), trace) == 1.0
    constant = stl.Predicate(lambda s: s["radius"] - 1)
    assert stl.robustness_signal(constant, trace).tolist() == [1.0] * 3
    with pytest.raises(DataError, match="single number"):
        stl.robustness(stl.Predicate(lambda s: s["at"]), trace)


@pytest.mark.parametrize("temperature", [None, 0.1])
def test_padding_that_is_not_valid_changes_nothing(temperature):
    trace = signals(9)
    padded = {name: np.concatenate([x, np.full(4, 99.0, np.float32)]) for name, x in trace.items()}
    valid = jnp.arange(13) < 9
    for written in ("always x > 0", "eventually[3,9] y > 0", "x > -9 until[2,20] (always z < 1)", "G F[0,3] x > 1"):
        formula = stl.parse(written)
        want = stl.robustness_signal(formula, trace, temperature=temperature)
        found = stl.robustness_signal(formula, padded, temperature=temperature, valid=valid)
        np.testing.assert_allclose(found[:9], want, atol=1e-5)


def count(jaxpr):
    inner = [value for eqn in jaxpr.eqns for value in jax.tree.leaves(list(eqn.params.values()))]
    return len(jaxpr.eqns) + sum(
        count(getattr(v, "jaxpr", v)) for v in inner if hasattr(getattr(v, "jaxpr", v), "eqns")
    )


@pytest.mark.parametrize("temperature", [None, 0.1])
def test_the_program_does_not_grow_with_the_horizon(temperature):
    formula = stl.parse("always (x > 0 or eventually[0,30] (y > 0 until[3,90] z > 0))")

    def size(steps):
        def value(trace):
            return stl.robustness(formula, trace, temperature=temperature, strict=False)

        return count(jax.make_jaxpr(jax.grad(value))(signals(steps)).jaxpr)

    assert size(100) < 2_000 and size(100_000) == size(100)


# --- what is refused


def test_a_window_past_the_end_is_an_error_unless_it_is_allowed():
    trace = signals(6)
    with pytest.raises(DataError, match="looks 6 steps ahead, but the trace has 6 steps"):
        stl.robustness(stl.parse("always[6,8] x > 0"), trace)
    with pytest.raises(DataError, match="asked for at step 5"):
        stl.robustness(stl.parse("always eventually[1,2] x > 0"), trace)
    with pytest.raises(DataError, match="asked for at step 4"):
        stl.robustness(stl.parse("always[4,4] (y > 0 until[2,3] x > 0)"), trace)
    assert np.isfinite(stl.robustness(stl.parse("always[0,3] eventually[2,9] x > 0"), trace))
    assert stl.robustness(stl.parse("always[6,8] x > 0"), trace, strict=False) == math.inf
    assert stl.robustness(stl.parse("eventually[6,8] x > 0"), trace, strict=False) == -math.inf
    assert stl.horizon(stl.parse("always[0,3] (x > 0 until[1,4] eventually[2,9] y > 0)")) == 16
    assert stl.horizon(stl.parse("eventually[0,3] always x > 0")) is None


def test_traces_that_do_not_fit():
    formula = stl.parse("speed > 0")
    with pytest.raises(DataError, match="'speed', which the trace lacks: did you mean sped"):
        stl.robustness(formula, {"sped": jnp.zeros(3)})
    with pytest.raises(DataError, match=r"shape \(3, 2\), expected \[time\]"):
        stl.robustness(formula, {"speed": jnp.zeros((3, 2))})
    with pytest.raises(DataError, match="x 3, speed 4"):
        stl.robustness(formula, {"x": jnp.zeros(3), "speed": jnp.zeros(4)})
    with pytest.raises(DataError, match="no steps"):
        stl.robustness(formula, {"speed": jnp.zeros(())})
    with pytest.raises(DataError, match="valid"):
        stl.robustness(formula, {"speed": jnp.zeros(3)}, valid=jnp.ones(2, bool))
    with pytest.raises(ConfigError, match="temperature"):
        stl.robustness(formula, {"speed": jnp.zeros(3)}, temperature=0.0)
    with pytest.raises(ConfigError, match="interval"):
        stl.Always(formula, 3, 2)
    with pytest.raises(ConfigError, match="at least one"):
        stl.And(())


# --- the text


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("x > 0 and y > 0 or z > 0", "(((x > 0) and (y > 0)) or (z > 0))"),
        ("x > 0 & y > 0 && z > 0", "((x > 0) and (y > 0) and (z > 0))"),
        ("x > 0 -> y > 0 -> z > 0", "((x > 0) -> ((y > 0) -> (z > 0)))"),
        ("not x > 0 and y > 0", "((not (x > 0)) and (y > 0))"),
        ("G x > 0 U[1:2] y > 0", "((always (x > 0)) until[1,2] (y > 0))"),
        ("F[0,10) x - 2 * y - -1 >= .5e1", "(eventually[0,9] (((x - (2 * y)) - (-1)) >= 5))"),
        ("always[2,inf] (min(x, y) + 1) / 2 < 3", "(always[2,inf] (((min(x, y) + 1) / 2) < 3))"),
        ("((arm.left > 0))", "(arm.left > 0)"),
    ],
)
def test_what_a_text_means(written, meant):
    formula = stl.parse(written)
    assert str(formula) == meant and str(stl.parse(meant)) == meant


def test_every_formula_is_read_back_from_its_text():
    for formula, _ in cases(7, 30):
        read = stl.parse(text(formula))
        assert str(stl.parse(str(read))) == str(read)


def test_arithmetic():
    trace = {"x": jnp.array([4.0]), "y": jnp.array([-2.0])}
    value = stl.robustness(stl.parse("sqrt(x) * 3 - abs(y) / 2 + exp(x - 4) + min(x, y) - max(1, y) >= -x"), trace)
    assert value == pytest.approx(6 - 1 + 1 - 2 - 1 + 4)


@pytest.mark.parametrize(
    ("written", "column", "problem"),
    [
        ("always[0,5 (x > 1)", 12, "expected ']' or"),
        ("x + 1", 1, "a number where a formula"),
        ("x > 1 > 2", 1, "a formula where a number"),
        ("x > 1 and y", 11, "a number where a formula"),
        ("x > ", 4, "found the end"),
        ("", 1, "found the end"),
        ("x > 1 y", 7, "found 'y'"),
        ("x > 1 and\n  norm(x) > 2", 13, "'norm' is no function"),
        ("x > 1 $ 2", 7, r"'\$' has no meaning"),
        ("G[5,2] x > 0", 5, "ends at 2, before"),
        ("G[2,2) x > 0", 5, "ends at 1, before"),
        ("G[0,1.5] x > 0", 5, "whole steps"),
        ("G[-1,2] x > 0", 3, "whole steps"),
        ("(x > 1", 7, r"expected '\)'"),
        ("xx > 0", 1, "no signal 'xx'"),
        ("min(x) > 0", 6, "expected ','"),
        ("x > 0 and and y > 0", 11, "found 'and'"),
        ("__import__('os') > 0", 12, "has no meaning"),
    ],
)
def test_what_is_no_formula_is_refused_with_its_column(written, column, problem):
    with pytest.raises(FormulaError, match=problem) as caught:
        stl.parse(written, NAMES)
    assert caught.value.column == column
    assert str(caught.value).splitlines()[-1] == "    " + " " * (column - 1) + "^"


@pytest.mark.parametrize("deep", ["(" * 500 + "x > 0", "not " * 500 + "x > 0", "x" + " + x" * 3000 + " > 0"])
def test_what_is_nested_too_deeply_is_refused(deep):
    with pytest.raises(FormulaError, match="nested"):
        stl.parse(deep)
    with pytest.raises(FormulaError, match="longer"):
        stl.parse(deep * 100)


def test_a_long_conjunction_is_not_deep():
    assert len(stl.parse(" and ".join(["x > 0"] * 100)).parts) == 100
