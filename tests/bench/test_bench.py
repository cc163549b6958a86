"""The driver of `bench/`: its tables, its settings, its pins. Nothing is timed here."""

import copy
import re
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import machine  # noqa: E402
import side  # noqa: E402
from comparisons import COMPARISONS, HABITUS  # noqa: E402
from table import BEGIN, END, write_tables  # noqa: E402

MACHINE = {"cpu": "a processor", "cores": 2, "system": "Linux", "python": "3.11.7"}
PEERS = sorted(folder.name for folder in (BENCH / "peers").iterdir() if (folder / "run.py").exists())


def _rate(rate):
    return {"rate": rate, "unit": side.UPDATES, "seconds": 1.0, "versions": {"d3rlpy": "2.8.1"}, "others": 0.01}


def _start(import_s, first, cached):
    return {
        "import_s": import_s,
        "first_update_s": first,
        "cached_s": cached,
        "unit": "s",
        "versions": {},
        "others": None,
    }


def _results(rounds):
    return {"machine": MACHINE, "commit": "abc", "date": "2026-01-01", "scale": 1.0, "rounds": rounds}


RATES = ((600, 100), (500, 50), (300, 100))
TD3BC = _results([{"habitus td3bc": _rate(ours), "d3rlpy td3bc": _rate(theirs)} for ours, theirs in RATES])


def test_ratio_is_the_median_of_the_rounds_own_ratios():
    row = next(line for line in write_tables({"td3bc": TD3BC}, None).splitlines() if "d3rlpy" in line)
    assert "**6.00** (3.00–10.00)" in row
    assert "500 (300–600)" in row and "100 (50.0–100.0)" not in row
    assert "reached" in row and "missed" not in row


def test_a_missed_target_says_by_how_much():
    slow = copy.deepcopy(TD3BC)
    for one in slow["rounds"]:
        one["habitus td3bc"]["rate"] = 4 * one["d3rlpy td3bc"]["rate"]
    assert "missed by 20%" in write_tables({"td3bc": slow}, None)


def test_a_peer_that_was_not_run_has_no_row():
    rounds = [{"habitus sac-hopper": _rate(300), "sbx sac-hopper": _rate(200)}]
    text = write_tables({"sac-hopper": _results(rounds)}, None)
    assert text.count("updates/s") == 1 and "**1.50**" in text


def test_starts_have_their_own_table_and_a_dash_where_there_is_no_cache():
    rounds = [{"habitus start": _start(0.1, 3.0, 2.0), "sb3 start": _start(1.3, 2.5, None)}]
    text = write_tables({"start": _results(rounds)}, None)
    assert "| import | 0.3 | 0.10 (0.10–0.10) | 1.30 (1.30–1.30) |" in text
    assert "| 2.5 | 2.00 (2.00–2.00) | – |" in text


def test_page_keeps_what_is_around_the_markers(tmp_path):
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_tables({"td3bc": TD3BC}, page)
    write_tables({"td3bc": TD3BC}, page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "old" not in text and text.count("**6.00**") == 1
    assert "a processor, 2 cores" in text and "at most 1%" in text


def test_the_share_of_others_leaves_out_our_own_children(monkeypatch):
    # Two seconds on two cores, of which three were busy, half of that with our children.
    readings = iter([(0.0, 10.0, 1.0), (2.0, 13.0, 2.5)])
    monkeypatch.setattr(machine.Others, "_now", staticmethod(lambda: next(readings)))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(machine, "STAT", BENCH)
    with machine.Others() as others:
        pass
    assert others.share == pytest.approx(1.5 / 4)


@pytest.mark.parametrize(("share", "idle"), [(0.5, False), (0.05, True), (None, True)])
def test_a_busy_machine_is_not_measured(monkeypatch, share, idle):
    monkeypatch.setattr(machine.Others, "__exit__", lambda self, *_: setattr(self, "share", share))
    monkeypatch.setattr(machine.time, "sleep", lambda _: None)
    monkeypatch.setattr(machine, "PATIENCE_S", 0)
    if idle:
        machine.wait_until_idle()
    else:
        with pytest.raises(SystemExit, match="50% of this machine"):
            machine.wait_until_idle()


def test_page_without_markers_is_refused_and_left_alone(tmp_path):
    page = tmp_path / "performance.md"
    page.write_text("mine")
    with pytest.raises(SystemExit, match="put them where"):
        write_tables({"td3bc": TD3BC}, page)
    assert page.read_text() == "mine"


def test_the_committed_page_has_the_markers():
    text = (BENCH.parent / "docs" / "performance.md").read_text()
    assert text.index(BEGIN) < text.index(END)


@pytest.mark.parametrize("comparison", COMPARISONS.values(), ids=list(COMPARISONS))
def test_every_side_of_a_comparison_has_a_script_that_knows_its_work(comparison):
    for peer, work in comparison.sides(None):
        folder = BENCH / "peers" / peer
        sources = [BENCH / "habitus_run.py"] if peer == HABITUS else [folder / "run.py"]
        if peer in ("sb3", "sbx"):
            sources.append(BENCH / "peers" / "stable_baselines.py")
        assert any(f'"{work}"' in source.read_text() for source in sources), (peer, work)


def test_peers_can_be_chosen():
    assert list(COMPARISONS["sac-hopper"].sides(["sb3"])) == [(HABITUS, "sac-hopper"), ("sb3", "sac-hopper")]


@pytest.mark.parametrize("peer", PEERS)
def test_every_requirement_is_pinned_and_constrained_alike(peer):
    pin = re.compile(r"^([A-Za-z0-9_.-]+)(\[\w+\])?==([\w.]+)$")

    def pins(name):
        lines = (BENCH / "peers" / peer / name).read_text().splitlines()
        wanted = [line for line in lines if line and not line.startswith(("#", "-c "))]
        matches = [pin.match(line) for line in wanted]
        assert all(matches), [line for line, match in zip(wanted, matches, strict=True) if not match]
        return {re.sub(r"[-_.]+", "-", m[1]).lower(): m[3] for m in matches}

    constraints = pins("constraints.txt")
    for name, version in pins("requirements.txt").items():
        assert constraints[name] == version


def test_the_random_log_is_the_same_every_time_and_inside_the_action_space():
    one, two = side.random_log(), side.random_log()
    assert one["obs"].shape == (200_000, 17) and one["action"].shape == (200_000, 6)
    assert abs(one["action"]).max() <= 1 and one["ends"].sum() == 200 and one["ends"][-1]
    assert all((one[name] == two[name]).all() for name in one)
