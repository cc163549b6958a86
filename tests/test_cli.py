"""The command line, as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from inspect import signature

import pytest

from habitus.cli import _learners, _recipes, main
from habitus.train.setup import entry


def test_listing_methods_imports_no_jax():
    code = "import sys, habitus, habitus.cli; habitus.cli.main(['methods']); assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "prdc" in done.stdout


def test_methods_as_json(capsys):
    main(["methods", "--json"])
    rows = {row["slug"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows["prdc"]) == {"slug", "title", "family", "kind", "paper", "claim", "file"}
    assert rows["prdc"]["claim"] in ("reproduced", "not reproduced", "inconclusive") and rows["ppo"]["claim"] is None


def test_a_citation_names_the_paper(capsys):
    main(["cite", "prdc"])
    assert "2306.06569" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        ["cite", "prdd"],
        ["learn", "tdbc"],
        ["learn", "td3bc", "--quiet"],
        ["learn", "debate-reward"],
        ["learn", "dataset-perspective"],
        ["learn", "td3bc", "--quiet", "--data", "pendulum-medium", "--source", "iql"],
        ["learn", "td3bc", "--quiet", "--source", "pgd"],
        ["learn", "td3bc", "--quiet", "--source", "pgd", "--data", "pendulum-medium", "--env", "pendulum"],
        ["data", "inspect", "pendulum-mediu"],
        ["evaluate", "no-such-run"],
        ["claim", "ppo"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_done_is_one_sentence_and_status_2(argv, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith("habitus: ") and len(said.splitlines()) == 1


@pytest.mark.parametrize("slug", _learners())
def test_the_options_of_every_learner_are_understood(slug, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = ["--data", "pendulum-medium"] if entry(slug).sides else []
    with pytest.raises(SystemExit):
        main(["learn", slug, "--env", "no-such-world", "--num-envs", "4", "--seeds", "2", *log])
    assert "no world is called 'no-such-world'" in capsys.readouterr().err


@pytest.mark.parametrize("slug", _recipes())
def test_the_arguments_of_a_recipe_are_options_and_their_comments_the_help(slug, capsys, tmp_path, monkeypatch):
    from habitus.train.recipe import arguments

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["learn", slug, "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for argument in arguments(entry(slug)):
        assert f"--{argument.name.replace('_', '-')}" in said
        assert argument.comment.split(";")[0] in said
    with pytest.raises(SystemExit):
        needed = signature(entry(slug)).parameters.get("env")
        world = ["--env", "lane-scene"] if needed and needed.default is needed.empty else []
        main(["learn", slug, "--data", "no-such-log", "--seeds", "2", *world])
    assert "no-such-log" in capsys.readouterr().err


def test_from_a_log_to_a_page(tmp_path, capsys):
    run = tmp_path / "run"
    settings = [
        "--steps=20",
        "--hidden=8",
        "--batch-size=16",
        "--evaluations=1",
        "--episodes=2",
        "--seeds=2",
        "--quiet",
    ]
    main(["learn", "bc", "--data", "pendulum-medium", "--folder", str(run), "--seeds=2", "--quiet", *settings])
    said = capsys.readouterr().out.strip()
    assert "over 2 seeds" in said and said.endswith(str(run))
    main(["evaluate", str(run), "--episodes", "2"])
    assert "interquartile mean" in capsys.readouterr().out
    main(["evaluate", str(run), "--offline", "pendulum-medium", "--updates", "20", "--discount", "0.9"])
    offline = capsys.readouterr().out
    assert "fqe" in offline and "model" in offline and "no action probabilities" in " ".join(offline.split())
    main(["report", str(run), "--out", str(tmp_path / "page.html")])
    assert (tmp_path / "page.html").read_text().startswith("<!")


def test_a_source_is_named_and_takes_its_options(tmp_path, capsys):
    run, options = tmp_path / "run", ["length=4", "features=8", "blocks=1", "levels=2", "windows=4", "fit-steps=2"]
    main([
        "learn", "td3bc", "--data", "pendulum-medium", "--source", "pgd", *(f"--pgd.{option}" for option in options),
        "--steps=4", "--hidden=8", "--batch-size=16", "--evaluations=0", "--quiet", "--folder", str(run),
    ])  # fmt: skip
    told = json.loads((run / "config.json").read_text())["source"]
    assert told["kind"] == "PolicyGuidedDiffusion" and told["batch_size"] == 16 and told["length"] == 4


def test_a_log_is_made_converted_and_inspected(tmp_path, capsys):
    out = tmp_path / "log.npz"
    main(["data", "make", "pendulum-medium", "--size", "400", "--out", str(out)])
    main(["data", "convert", str(out), str(tmp_path / "log.hdf5")])
    capsys.readouterr()
    main(["data", "inspect", str(tmp_path / "log.hdf5")])
    assert "400 in 2 episodes" in capsys.readouterr().out
