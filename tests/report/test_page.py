"""The page is one file, asks nothing of the network, runs nothing, hides nothing, and can be read by all."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest

from habitus.core.errors import ConfigError, DataError
from habitus.report.page import entries, write_report
from habitus.report.plots import COLOURS
from habitus.report.read import read_run

CSS = files("habitus.report").joinpath("page.css").read_text()
EVIL = "\"'><script>alert(1)</script><img src=https://evil.test/x onerror=alert(1)>{{7*7}}${x}%s</style>"
VOID = {"meta", "input", "path"}


class Outline(HTMLParser):
    """Elements of a page, whether they nest, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def outline(path) -> Outline:
    reader = Outline()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert not reader.open
    return reader


@pytest.fixture
def page(run_folder, tmp_path):
    """Three runs in two worlds."""
    runs = [
        run_folder("bc", method="bc", end=-400),
        run_folder("prdc", method="prdc", end=-150),
        run_folder("maze", method="prdc", env="pointmaze", end=0.8, success=True),
    ]
    returns = np.random.default_rng(0).normal(-600, 100, 50)
    return write_report(runs, tmp_path / "deep" / "report.html", references={"pendulum": {"behaviour": returns}})


def test_holds_everything_it_promises(page):
    shown = outline(page)
    assert [a for a in shown.all("title")] and "bc and prdc on pendulum and pointmaze" in shown.text
    for part in (
        "Final evaluation",
        "Return in evaluation",
        "critic/loss",
        "Hyperparameters",
        "learning_rate",
        "behaviour",
    ):
        assert part in shown.text
    for part in (
        "Success",
        "Gain on bc, seed by seed",
        "Machine and versions",
        "aaaaaaaaaaaa, with changes",
        "wall time",
    ):
        assert part in shown.text
    assert "episode/finished" not in shown.text


def test_asks_nothing_of_the_network_and_runs_nothing(page):
    shown = outline(page)
    assert not re.search(r"https?:|//[a-z]|@import", page.read_text())
    assert not {"script", "link", "iframe", "object", "a"} & {tag for tag, _ in shown.elements}
    assert not [
        key for _, attributes in shown.elements for key in attributes if key.startswith("on") or key in ("src", "href")
    ]
    assert any("default-src 'none'" in a.get("content", "") for a in shown.all("meta"))


def test_nothing_in_a_run_can_become_markup(run_folder, tmp_path):
    folder = run_folder(
        method=EVIL, env=EVIL, command=EVIL, hyperparameters={EVIL: EVIL}, source={"kind": EVIL, EVIL: EVIL}
    )
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(lines.replace("critic/loss", EVIL.replace('"', '\\"')))
    (folder / "versions.json").write_text('{"</style><script>": "<b>"}')
    out = write_report([folder], tmp_path / "r.html", references={EVIL: {EVIL: [1.0, 2.0]}})
    shown = outline(out)
    assert not {"script", "img", "b"} & {tag for tag, _ in shown.elements}
    assert not [key for _, attributes in shown.elements for key in attributes if key.startswith("on")]
    assert shown.text.count(EVIL) > 5
    assert len(shown.all("style")) == 1


def test_every_drawing_has_words_and_every_switch_a_label(page):
    shown = outline(page)
    for svg in shown.all("svg"):
        assert svg.get("aria-hidden") == "true" or (svg["role"] == "img" and len(svg["aria-label"]) > 10)
    ids = [a["id"] for _, a in shown.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["for"] for a in shown.all("label")} == set(ids)
    headings = [int(tag[1]) for tag, _ in shown.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and max(np.diff(headings)) <= 1 or 4 in headings


def test_the_drawing_shows_the_data(run_folder, tmp_path):
    """Higher returns are drawn higher, and the band encloses its line."""
    runs = [run_folder("low", method="bc", end=-900), run_folder("high", method="prdc", end=-100)]
    text = write_report(runs, tmp_path / "r.html").read_text()
    chart = re.search(r'aria-label="Return in evaluation[^>]*>(.*?)</svg>', text).group(1)
    strokes = re.findall(r'd="M([^"]*)" class="stroke', chart)
    bands = re.findall(r'd="M([^"]*)Z" class="band', chart)
    low, high = (np.array([point.split() for point in stroke.split("L")], float) for stroke in strokes)
    assert (high[:, 1] < low[:, 1]).all() and (np.diff(high[:, 0]) > 0).all()
    for middle, band in zip((low, high), bands, strict=True):
        edge = np.array([point.split() for point in band.split("L")], float)
        top, bottom = edge[: len(middle), 1], edge[len(middle) :, 1][::-1]
        assert (top <= middle[:, 1] + 1).all() and (middle[:, 1] <= bottom + 1).all() and (bottom > top).any()


def test_one_seed_says_what_its_interval_means(run_folder, tmp_path):
    shown = outline(write_report([run_folder(seeds=(3,))], tmp_path / "r.html"))
    assert "With one seed" in shown.text and "5 episodes" in shown.text
    assert not [a for a in shown.all("path") if a["class"].startswith("band")]


def test_different_seeds_are_compared_without_pairs(run_folder, tmp_path):
    runs = [run_folder("a", method="bc", seeds=(0, 1, 2)), run_folder("b", method="prdc", seeds=(5, 6, 7, 8))]
    assert "Chance to beat bc" in outline(write_report(runs, tmp_path / "r.html")).text


def test_runs_without_evaluations_or_world_still_make_a_page(run_folder, tmp_path):
    folder = run_folder(env=None, evaluations=0)
    shown = outline(write_report([folder], tmp_path / "r.html"))
    assert "No evaluations were recorded" in shown.text and "td3bc on a log" in shown.text
    for name in ("metrics.jsonl", "evaluations.jsonl", "versions.json"):
        (folder / name).unlink()
    shown = outline(write_report([folder], tmp_path / "r.html"))
    assert "did not finish: 0 of 4 seeds" in shown.text


def test_runs_of_one_method_are_told_apart_by_folder(run_folder):
    records = [read_run(run_folder(name)) for name in ("a", "b")] + [read_run(run_folder("c", env="pointmaze"))]
    assert [(e.label, e.index) for e in entries(records)] == [("td3bc · a", 0), ("td3bc · b", 1), ("td3bc", 2)]


def test_refuses_what_it_cannot_report(run_folder, tmp_path):
    with pytest.raises(ConfigError, match="at least one run"):
        write_report([], tmp_path / "r.html")
    with pytest.raises(ConfigError, match="twice"):
        write_report([folder := run_folder(), folder / "." / "../run"], tmp_path / "r.html")
    with pytest.raises(DataError, match="is not a run"):
        write_report([tmp_path / "none"], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def palettes() -> list[dict[str, str]]:
    """The colours of the light and of the dark page."""
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.S)
    assert len(blocks) == 2
    return [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in blocks]


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("palette", palettes(), ids=["light", "dark"])
def test_contrast_meets_wcag_aa(palette):
    paper = luminance(palette["paper"])

    def ratio(name: str) -> float:
        light, dark = sorted((luminance(palette[name]), paper), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    assert ratio("ink") > 7
    assert all(ratio(name) > 4.5 for name in ("soft", *(f"run-{i}" for i in range(COLOURS))))
