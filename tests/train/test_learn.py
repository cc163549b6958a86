"""`learn` over compiled sources: what a run leaves behind, how it goes on, how it stops."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from habitus.core.errors import CheckpointError, ConfigError, Diverged, RunExists, SpaceMismatch
from habitus.envs.registry import make
from habitus.methods.offline.td3bc import TD3BC
from habitus.train.checkpoint import Checkpoints
from habitus.train.log import read_jsonl
from habitus.train.loop import learn
from habitus.train.setup import make_source
from habitus.train.sources import Replay

from .tiny import Ticks, Tiny, TinyOnPolicy, assert_same, small_log, weights

LOG = small_log()


def checkpoints_in(folder):
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())


def tiny_run(steps=20, learner=None, **options):
    return learn(learner or Tiny(), LOG, steps, **({"points": 5} | options))


@pytest.fixture(scope="module")
def reference():
    """An uninterrupted run of two seeds."""
    return tiny_run(40, seeds=2)


class TestFolder:
    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("runs") / "one"
        return tiny_run(
            folder=folder, seeds=[3, 7], evaluations=2, episodes=3, evaluate_in=Ticks(), checkpoints=4, keep=2
        )

    def test_it_holds_the_configuration(self, run):
        config = json.loads((run.folder / "config.json").read_text())
        assert config["method"] == "Tiny" and config["hyperparameters"]["rate"] == 0.01
        assert config["seeds"] == [3, 7] and config["steps"] == 20 and config["env"] == "Ticks"
        assert config["source"]["kind"] == "DatasetSource" and config["source"]["dataset"]["rows"] == 40
        assert "command" in config and "started" in config

    def test_it_holds_versions_and_the_state_of_git(self, run):
        versions = json.loads((run.folder / "versions.json").read_text())
        assert {"python", "platform", "jax", "numpy", "git"} <= set(versions)

    def test_the_curves_on_disk_are_the_curves_of_the_run(self, run):
        rows = read_jsonl(run.folder / "metrics.jsonl")
        assert [row["update"] for row in rows] == run.history["update"].tolist() == [4, 5, 8, 10, 12, 15, 16, 20]
        np.testing.assert_array_equal([row["metrics"]["loss"] for row in rows], run.history["loss"])
        assert run.history["loss"].shape == (8, 2) and run.history["seconds"].shape == (8,)
        assert all(row["seeds"] == [3, 7] for row in rows)

    def test_evaluations_are_evenly_spaced_with_the_last_at_the_end(self, run):
        assert read_jsonl(run.folder / "evaluations.jsonl") == run.evaluations
        assert [row["update"] for row in run.evaluations] == [10, 20]
        assert np.shape(run.evaluations[0]["returns"]) == np.shape(run.evaluations[0]["lengths"]) == (2, 3)
        assert run.returns.shape == (2, 2) and (run.returns == 5).all()

    def test_the_newest_checkpoints_and_the_best_stay(self, run):
        # both evaluations score 5, and of equals the first may be the best: 10 stays besides 15 and 20
        assert checkpoints_in(run.folder)[-2:] == [15, 20] and len(checkpoints_in(run.folder)) <= 3

    def test_the_policy_of_each_seed_is_saved(self, run):
        assert sorted(p.name for p in (run.folder / "policy").iterdir()) == ["seed-3", "seed-7"]
        for seed in (3, 7):
            kept = {p.name for p in (run.folder / "policy" / f"seed-{seed}").iterdir()}
            assert kept == {"policy.json", "policy.safetensors"}

    def test_it_is_not_written_over(self, run):
        with pytest.raises(RunExists, match="resume=True.*overwrite=True"):
            tiny_run(folder=run.folder, seeds=[3, 7])

    def test_without_a_folder_nothing_is_kept(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert tiny_run().folder is None
        assert not list(tmp_path.iterdir())


class TestOverwrite:
    def test_nothing_of_the_old_run_remains(self, tmp_path):
        folder = tmp_path / "run"
        tiny_run(20, folder=folder, seeds=[5], checkpoints=4)
        run = tiny_run(8, folder=folder, overwrite=True, checkpoints=1)
        assert checkpoints_in(folder) == [8]
        assert [p.name for p in (folder / "policy").iterdir()] == ["seed-0"]
        assert len(read_jsonl(folder / "metrics.jsonl")) == len(run.history["update"])
        assert_same(run, tiny_run(8))

    def test_a_run_that_cannot_start_takes_nothing_away(self, tmp_path):
        folder = tmp_path / "run"
        before = tiny_run(20, folder=folder)
        with pytest.raises(SpaceMismatch, match="bounded Box"):
            learn(TD3BC(), env="cartpole", steps=2_000, folder=folder, overwrite=True)
        assert_same(before, tiny_run(20, folder=folder, resume=True))

    def test_a_run_that_cannot_start_leaves_no_run_behind(self, tmp_path):
        folder = tmp_path / "run"
        with pytest.raises(SpaceMismatch, match="bounded Box"):
            learn(TD3BC(), env="cartpole", steps=2_000, folder=folder)
        tiny_run(8, folder=folder)

    @pytest.mark.parametrize("options", [{}, {"resume": True}])
    def test_checkpoints_without_a_configuration_are_not_taken_for_ours(self, tmp_path, options):
        tiny_run(20, folder=tmp_path, seeds=[9])
        (tmp_path / "config.json").unlink()
        with pytest.raises(RunExists, match="overwrite=True"):
            tiny_run(20, folder=tmp_path, **options)
        assert_same(tiny_run(20, folder=tmp_path, overwrite=True), tiny_run(20))

    def test_files_that_are_not_of_a_run_stay(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        tiny_run(8, folder=tmp_path)
        tiny_run(8, folder=tmp_path, overwrite=True)
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert not list(tmp_path.glob(".overwritten-*"))


class TestResume:
    def test_two_halves_are_the_whole_to_the_last_bit(self, tmp_path, reference):
        tiny_run(12, folder=tmp_path, seeds=2)
        run = tiny_run(40, folder=tmp_path, seeds=2, resume=True)
        assert_same(run, reference)
        assert run.history["update"][0] < 12 < run.history["update"][-1] == 40

    def test_where_nothing_is_kept_yet_it_starts(self, tmp_path, reference):
        assert_same(tiny_run(40, folder=tmp_path / "new", seeds=2, resume=True), reference)

    def test_a_finished_run_is_handed_back(self, tmp_path, reference):
        first = tiny_run(40, folder=tmp_path, seeds=2)
        again = tiny_run(40, folder=tmp_path, seeds=2, resume=True)
        assert_same(again, reference)
        assert again.seconds.get("learn", 0) == 0
        assert again.history["update"].tolist() == first.history["update"].tolist()

    @pytest.mark.parametrize("source", [TinyOnPolicy(), Tiny()])
    def test_collecting_goes_on_where_it_was(self, tmp_path, source):
        options = {"source_options": {"warmup": 8, "capacity": 64}} if not source.on_policy else {}
        whole = learn(source, Ticks(), 160, **options)
        learn(source, Ticks(), 80, folder=tmp_path, **options)
        assert_same(learn(source, Ticks(), 160, folder=tmp_path, resume=True, **options), whole)

    def test_rows_written_after_the_checkpoint_are_written_anew(self, tmp_path, reference):
        run = tiny_run(12, folder=tmp_path, seeds=2)
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 30, "update": 30, "seeds": [0, 1], "seconds": 0, "metrics": {}}) + "\n")
            file.write('{"step": 33, "upd')
        run = tiny_run(40, folder=tmp_path, seeds=2, resume=True)
        updates = run.history["update"].tolist()
        assert 30 not in updates and updates == sorted(set(updates))
        assert [row["update"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == updates

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"learner": Tiny(rate=0.5)}, "rate was 0.01, but is now 0.5"),
            ({"learner": TinyOnPolicy(), "source": Ticks()}, "method was 'Tiny', but is now 'TinyOnPolicy'"),
            ({"seeds": [1]}, r"seeds was \[0\], but is now \[1\]"),
            ({"source": small_log(rows=80)}, "rows was 40, but is now 80"),
        ],
    )
    def test_other_settings_are_refused_by_name(self, tmp_path, options, named):
        tiny_run(8, folder=tmp_path)
        with pytest.raises(CheckpointError, match=named):
            learn(**({"learner": Tiny(), "source": LOG, "steps": 20, "folder": tmp_path, "resume": True} | options))

    def test_fewer_steps_than_done_are_refused(self, tmp_path):
        tiny_run(20, folder=tmp_path)
        with pytest.raises(CheckpointError, match="already 20 .* beyond the 8"):
            tiny_run(8, folder=tmp_path, resume=True)

    def test_a_configuration_that_is_damaged_is_named(self, tmp_path):
        tiny_run(8, folder=tmp_path)
        (tmp_path / "config.json").write_text('{"method": ')
        with pytest.raises(CheckpointError, match="config.json"):
            tiny_run(20, folder=tmp_path, resume=True)

    def test_resume_needs_a_folder(self):
        with pytest.raises(ConfigError, match="folder"):
            tiny_run(8, resume=True)


class TestCheckpoints:
    def save(self, folder, scores, keep=2):
        store = Checkpoints(folder, keep)
        for update, score in scores.items():
            store.save(update, [np.full(3, update, np.float32)], score)
        store.close()
        return sorted(int(p.name) for p in folder.iterdir())

    def test_the_newest_and_the_best_stay(self, tmp_path):
        scores = {1: 0.0, 2: 9.0, 3: 1.0, 4: None, 5: 2.0, 6: None}
        assert self.save(tmp_path / "checkpoints", scores) == [2, 5, 6]

    def test_a_half_written_one_is_never_taken(self, tmp_path):
        folder = tmp_path / "checkpoints"
        self.save(folder, {1: None, 2: None})
        (folder / "2").rename(folder / "9.orbax-checkpoint-tmp-123")
        (folder / "9.orbax-checkpoint-tmp-123" / "_CHECKPOINT_METADATA").unlink()
        store = Checkpoints(folder, 2)
        assert store.latest() == 1
        np.testing.assert_array_equal(store.load(1, [np.zeros(3, np.float32)])[0], [1, 1, 1])
        store.close()

    def test_other_shapes_are_refused(self, tmp_path):
        self.save(tmp_path, {1: None})
        store = Checkpoints(tmp_path, 2)
        for wrong in ([np.zeros((3, 2), np.float32)], [np.zeros(3)], [np.zeros(3, np.float32)] * 2):
            with pytest.raises(CheckpointError, match="other networks, sizes or seeds"):
                store.load(1, wrong)
        store.close()


class TestDiverged:
    def test_it_names_the_metric_the_update_and_the_last_good_checkpoint(self, tmp_path):
        with pytest.raises(Diverged, match="loss stopped being finite by update 13") as caught:
            tiny_run(40, Tiny(bad_at=13), folder=tmp_path, checkpoints=10)
        assert (caught.value.metric, caught.value.step) == ("loss", 13)
        assert caught.value.checkpoint == str(tmp_path / "checkpoints" / "12")
        assert checkpoints_in(tmp_path)[-1] == 12

    def test_the_checkpoint_it_names_is_good(self, tmp_path):
        with pytest.raises(Diverged) as caught:
            tiny_run(40, Tiny(bad_at=13), folder=tmp_path, checkpoints=10)
        store = Checkpoints(tmp_path / "checkpoints", 2)
        weight = next(x for x in store.load(12, _snapshot(1)) if x.shape == (1, 2, 1))
        np.testing.assert_array_equal(weight, weights(tiny_run(12)))
        store.close()
        assert caught.value.checkpoint.endswith("12")

    def test_parameters_are_watched_too(self):
        with pytest.raises(Diverged, match="a parameter stopped being finite .* no checkpoint was kept") as caught:
            tiny_run(20, Tiny(infinite_at=20))
        assert caught.value.step == 20

    def test_one_seed_is_enough(self):
        with pytest.raises(Diverged, match="loss"):
            tiny_run(20, Tiny(bad_at=5), seeds=3)

    def test_a_learning_rate_without_measure(self, tmp_path):
        learner = TD3BC(learning_rate=1e30, hidden=(8,), batch_size=8)
        with pytest.raises(Diverged, match="stopped being finite by update [1-5]; the last good|no checkpoint"):
            learn(learner, LOG, 20, folder=tmp_path)


def _snapshot(seeds):
    from habitus.data.source import DatasetSource
    from habitus.train.engine import PureEngine

    source = DatasetSource(LOG, 8)
    return PureEngine(Tiny(), source, source.spec, list(range(seeds)), None).snapshot()


class TestSeeds:
    def test_several_at_once_are_each_alone(self, reference):
        for i, seed in enumerate(reference.seeds):
            alone = tiny_run(40, seeds=[seed])
            np.testing.assert_array_equal(weights(alone)[0], weights(reference)[i])
            np.testing.assert_array_equal(alone.history["loss"][:, 0], reference.history["loss"][:, i])

    def test_they_differ(self, reference):
        assert not np.array_equal(*weights(reference))

    def test_the_number_of_points_changes_no_bit(self, reference):
        assert_same(tiny_run(40, seeds=2, points=13), reference)

    @pytest.mark.parametrize("seeds", [0, [], [1, 1]])
    def test_none_or_equal_ones_are_refused(self, seeds):
        with pytest.raises(ConfigError, match="different seeds"):
            tiny_run(8, seeds=seeds)


class TestWarmStart:
    def test_a_run_goes_on_from_the_states_of_another(self):
        before = tiny_run(12, seeds=2)
        after = learn(Tiny(rate=0.0), LOG, 4, seeds=2, warm_start=before)
        np.testing.assert_array_equal(weights(after), weights(before))

    def test_from_a_log_to_a_world(self):
        before = tiny_run(12)
        after = learn(
            Tiny(rate=0.0), Ticks(), 12, data=LOG, warm_start=before, source_options={"warmup": 4, "capacity": 64}
        )
        np.testing.assert_array_equal(weights(after), weights(before))

    def test_more_seeds_than_before_begin_with_the_same_states(self):
        before = tiny_run(12, seeds=2)
        after = learn(Tiny(rate=0.0), LOG, 4, seeds=3, warm_start=before)
        np.testing.assert_array_equal(weights(after)[:2], weights(before))

    def test_another_learner_is_refused(self):
        with pytest.raises(ConfigError, match="run of Tiny, but the learner is a TD3BC"):
            learn(TD3BC(), LOG, 4, warm_start=tiny_run(4))

    def test_the_policy_itself_fills_the_buffer_at_first(self):
        before = tiny_run(12)
        options = {"warmup": 40, "capacity": 64}
        for warm, expected in ((None, "uniform"), (before, "policy")):
            source, _ = make_source(Tiny(), None, Ticks(), LOG, None, options, warm=warm is not None)
            assert source.explore == expected
        still = Replay(Ticks(), batch_size=4, explore="policy", **options)
        state = still.init(Tiny(counting=True).explorer(before.states[0]), jax.random.key(0))
        assert set(np.round(state.buffer.data.action[:40, 0] * 100).astype(int).tolist()) == {0, 1, 2, 3, 4}

    def test_other_spaces_are_refused(self):
        with pytest.raises(SpaceMismatch, match="observation space differs"):
            learn(Tiny(), env="pendulum", steps=2_000, warm_start=tiny_run(4))


class TestEvaluations:
    def test_the_world_may_be_another_than_the_one_to_learn_in(self):
        run = learn(TinyOnPolicy(), Ticks(5), 32, evaluations=1, episodes=2, evaluate_in=Ticks(3))
        assert run.evaluations[0]["lengths"] == [[3, 3]] and run.env.length == 3

    def test_it_must_have_the_same_spaces(self):
        with pytest.raises(SpaceMismatch, match="the world to evaluate in"):
            tiny_run(evaluations=1, evaluate_in="pendulum")

    def test_a_log_of_nowhere_needs_one(self):
        with pytest.raises(ConfigError, match="evaluate_in"):
            tiny_run(evaluations=1)

    def test_they_may_be_asked_for_by_step(self):
        run = tiny_run(20, evaluations=[6, 20], episodes=1, evaluate_in=make(Ticks(4)))
        assert [row["step"] for row in run.evaluations] == [6, 20]

    def test_they_change_no_bit(self, reference):
        assert_same(tiny_run(40, seeds=2, evaluations=3, episodes=1, evaluate_in=Ticks()), reference)


class TestArguments:
    @pytest.mark.parametrize("steps", [0, -3])
    def test_steps_must_be_positive(self, steps):
        with pytest.raises(ConfigError, match="steps must be above 0"):
            tiny_run(steps)

    def test_something_to_learn_from_is_needed(self):
        with pytest.raises(ConfigError, match="something to learn from"):
            learn(Tiny())

    def test_hyperparameters_go_to_the_learner(self):
        with pytest.raises(ConfigError, match="rate"):
            learn(Tiny(), LOG, rate=0.2)

    def test_an_unknown_hyperparameter_names_what_is_near(self):
        with pytest.raises(ConfigError, match="td3bc has no hyperparameter 'learning_rat'.*learning_rate"):
            learn("td3bc", LOG, learning_rat=0.2)

    def test_an_on_policy_learner_needs_a_world(self):
        with pytest.raises(ConfigError, match="needs env="):
            learn(TinyOnPolicy(), LOG)
