"""Every claim runs with its smoke budget: the same code as the full experiment, in seconds."""

from __future__ import annotations

import json

import pytest

from habitus.claims.harness import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, claimed, run_claim


@pytest.mark.parametrize("slug", claimed())
def test_a_claim_runs(slug, tmp_path):
    result = run_claim(slug, smoke=True, out=tmp_path)
    assert result["smoke"] is True and result["measures"]
    assert result["verdict"] in (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE)
    assert json.loads((tmp_path / f"{slug}.json").read_text())["verdict"] == result["verdict"]
