"""The ICU world: what it pays and costs under known treatments, and that costs reach whoever asks."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.protocols import Policy
from habitus.data.behaviours import Dosing
from habitus.envs.registry import make
from habitus.measure.evaluate import evaluate


class Fixed(Policy):
    """The same doses always."""

    dose: float

    def __call__(self, obs, carry, key):
        return jnp.full(2, self.dose), carry


# mean return of a stay, and share of steps with the costs of SpO2 and urine
KNOWN = {
    "clinician": (Dosing.clinician(), (-10.21, 0.109, 0.002)),
    "no treatment": (Fixed(0.0), (-17.68, 0.001, 0.134)),
    "full doses": (Fixed(1.0), (-21.27, 0.900, 0.004)),
    "careful": (Dosing.careful(), (-9.53, 0.001, 0.001)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_treatments_earn_and_cost_what_is_known(name):
    policy, (earned, oxygen, urine) = KNOWN[name]
    found = evaluate(policy, "icu5", episodes=4_000)
    assert found.returns.mean() == pytest.approx(earned, abs=0.8)
    rates = found.cost_rates()
    assert list(rates) == ["SpO2", "urine"]
    assert rates["SpO2"].estimate == pytest.approx(oxygen, abs=0.015)
    assert rates["urine"].estimate == pytest.approx(urine, abs=0.015)
    assert rates["SpO2"].low <= rates["SpO2"].estimate <= rates["SpO2"].high
    assert f"{rates['SpO2']}" in dict(found.rows())["cost per step, SpO2"]


def test_the_costs_pull_against_each_other():
    rates = {name: evaluate(KNOWN[name][0], "icu5", episodes=200).episodes[0].costs.mean(0) for name in KNOWN}
    assert rates["no treatment"][1] > rates["clinician"][1] and rates["full doses"][0] > rates["clinician"][0]
    assert np.all(rates["careful"] <= rates["clinician"])


def test_a_stay_lasts_twenty_steps_and_is_cut():
    found = evaluate(KNOWN["careful"][0], make("icu5"), episodes=3).episodes[0]
    assert (found.lengths == 20).all() and found.costs.shape == (3, 2)
