"""The comparison of offline methods, with a tiny budget."""

from __future__ import annotations

import json

import habitus.measure.results as results
from habitus.claims.comparison import NAME, SMOKE, compare, offline_methods, page
from habitus.data.inspect import inspect
from habitus.measure.advise import advice, studied_logs
from habitus.train.standard import make_offline


def test_every_method_that_a_log_is_enough_for_takes_part():
    found = offline_methods()
    assert {"bc", "td3bc", "iql", "cql", "prdc", "a2pr", "famo2o", "uni-o4"} <= set(found)
    assert not {"bcq", "h2o", "dataset-perspective", "ppo", "sac"} & set(found)


def test_what_was_found_is_kept_shown_and_recommended_from(tmp_path, monkeypatch):
    said = []
    found = compare(SMOKE, tmp_path, said.append)
    assert len(said) == 2 and json.loads((tmp_path / f"{NAME}.json").read_text())["figures"] == found["figures"]
    (log,) = found["figures"]["logs"]
    assert set(log["scores"]) == {"bc", "td3bc"} and 0 < log["TQ"] < 1
    text = page(found)
    assert "pendulum-medium" in text and text.count("**") == 2
    monkeypatch.setattr(results, "results_folder", lambda: tmp_path)
    assert [row["log"] for row in studied_logs()] == ["pendulum-medium"]
    own = make_offline("pendulum", "medium", size=1_000)
    ((_, said_of_own),) = advice(inspect(own), own)
    best = max(log["scores"], key=log["scores"].get)
    assert said_of_own.startswith(best) and "pendulum-medium" in said_of_own
