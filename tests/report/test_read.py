"""Run folders come back as they were written, and a damaged one is one sentence that names the file and line."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from habitus.core.errors import DataError
from habitus.report.read import read_run


def test_reads_what_a_run_of_all_seeds_at_once_wrote(run_folder):
    record = read_run(run_folder(seeds=(10, 11, 12), evaluations=4, points=20, policies=True))
    assert record.seeds == (10, 11, 12) and record.method == "td3bc" and record.env == "pendulum"
    assert record.curves["critic/loss"].value.shape == (20, 3)
    assert record.curves["critic/loss"].step.tolist() == [1000.0 * (i + 1) for i in range(20)]
    assert np.isnan(record.curves["episode/return"].value[0]).all()
    assert [e.step for e in record.evaluations] == [5000, 10_000, 15_000, 20_000]
    assert record.evaluations[-1].scores.shape == (3,) and record.evaluations[-1].success is None
    assert record.seconds == 3.0 and not record.acts and record.complete
    assert sorted(record.policies) == [10, 11, 12]


def test_seeds_run_one_after_the_other_are_put_side_by_side(run_folder):
    record = read_run(run_folder(seeds=(0, 1), together=False, kind="Replay", success=True))
    assert record.curves["actor/loss"].value.shape == (20, 2)
    assert np.isfinite(record.curves["actor/loss"].value).all()
    assert record.seconds == 6.0 and record.acts
    assert record.evaluations[-1].success.shape == (2,)


def test_an_interrupted_run_keeps_what_its_seeds_share(run_folder):
    folder = run_folder(seeds=(0, 1, 2), together=False)
    for name, keep in (("metrics", 25), ("evaluations", 7)):
        path = folder / f"{name}.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join(lines[:keep]) + '\n{"step": 70')  # killed while writing
    record = read_run(folder)
    assert record.seeds == (0, 1) and not record.complete
    assert len(record.evaluations) == 2
    assert np.isnan(record.curves["actor/loss"].value[5:, 1]).all()


def test_a_run_that_only_started_is_readable(run_folder):
    folder = run_folder()
    for name in ("metrics.jsonl", "evaluations.jsonl", "versions.json"):
        (folder / name).unlink()
    record = read_run(folder)
    assert record.curves == {} and record.evaluations == () and record.versions == {} and record.seconds == 0.0


def test_what_is_no_run_says_so(tmp_path):
    with pytest.raises(DataError, match="has no config.json"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": 3}, "'method'"),
        ({"seeds": "all"}, "'seeds'"),
        ({"seeds": []}, "list of integers"),
        ({"seeds": [0, 1]}, "figures are of seeds"),
        ({"env": ["x"]}, "'env'"),
        ({"source": None}, "'source'"),
    ],
)
def test_a_damaged_config_names_the_field(run_folder, change, says):
    path = run_folder() / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=says):
        read_run(path.parent)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(run_folder, text):
    path = run_folder() / "config.json"
    path.write_text(text)
    with pytest.raises(DataError, match="config.json"):
        read_run(path.parent)


GOOD = {"step": 1, "update": 1, "seeds": [0, 1, 2, 3]}


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("metrics", "not json", "line 3, is not JSON"),
        ("metrics", 7, "line 3: expected an object"),
        ("metrics", {"step": "x"}, "line 3: 'step'"),
        ("metrics", {"step": 1, "seeds": ["0"]}, "line 3: 'seeds'"),
        ("metrics", GOOD | {"metrics": []}, "line 3: 'metrics'"),
        ("metrics", GOOD | {"metrics": {"loss": [1.0]}}, "line 3: metric 'loss' is not a list of 4"),
        ("metrics", GOOD | {"metrics": {"loss": [1, 2, 3, "4"]}}, "metric 'loss'"),
        ("metrics", GOOD | {"metrics": {}, "seconds": "long"}, "'seconds'"),
        ("evaluations", GOOD | {"returns": [[1.0]], "lengths": [[1]]}, "line 3: 'returns' is not a list of 4"),
        ("evaluations", GOOD | {"returns": [[1.0], [], [1], [1]], "lengths": [[1]] * 4}, "'returns' holds something"),
        ("evaluations", GOOD | {"returns": [[1.0]] * 4, "lengths": [["a"]] * 4}, "'lengths' holds something"),
        ("evaluations", GOOD | {"returns": [[float("nan")]] * 4, "lengths": [[1]] * 4}, "not finite"),
        ("evaluations", GOOD | {"returns": [[1.0]] * 4, "lengths": [[1]] * 4, "success": [True]}, "'success'"),
    ],
)
def test_a_damaged_line_is_named(run_folder, name, row, says):
    path = run_folder() / f"{name}.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = row if isinstance(row, str) else json.dumps(row)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=says) as caught:
        read_run(path.parent)
    assert f"{name}.jsonl" in str(caught.value)


def test_random_damage_never_ends_in_anything_but_a_data_error(run_folder):
    folder, rng = run_folder(points=5), random.Random(0)
    files = [folder / name for name in ("config.json", "versions.json", "metrics.jsonl", "evaluations.jsonl")]
    whole = {path: path.read_bytes() for path in files}
    refused = 0
    for _ in range(150):
        path = rng.choice(files)
        path.write_bytes(_damage(whole[path], rng))
        try:
            read_run(folder)
        except DataError as error:
            refused += 1
            assert str(path) in str(error) or str(folder) in str(error)
        path.write_bytes(whole[path])
    assert refused > 50


def _damage(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    kind = rng.randrange(4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + data[at + rng.randrange(1, 40) :]
    return data[:at] + rng.choice([b"null", b"[]", b"-1", b'"', b"{}", b"\xff"]) + data[at:]


def test_a_folder_that_is_missing_is_no_run():
    with pytest.raises(DataError, match="is not a run"):
        read_run(Path("nowhere"))
