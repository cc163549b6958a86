"""The report: one HTML file about one or more runs, which asks nothing of the network and runs no script."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from habitus.core.errors import ConfigError
from habitus.report.episodes import acts_of, films_of
from habitus.report.html import Html, el, join
from habitus.report.plots import chart, line, style_of, swatch
from habitus.report.read import Curve, Entry, RunRecord, read_run
from habitus.report.scale import count, duration
from habitus.report.tables import Contender, curve_table, evaluation_table, settings_table, versions_table

# Nothing may be fetched and nothing may run, whatever names and settings the runs contain.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
ONE_SEED = (
    "With one seed the interval says how the episodes of this one policy vary, and nothing of how the method does; "
    "learn with more seeds to compare methods."
)
HIDDEN = ("episode/finished",)

References = Mapping[str, Mapping[str, ArrayLike]]


def write_report(
    runs: Sequence[Path | str], out: Path | str, *, references: References | None = None, films: bool = True
) -> Path:
    """Writes one self-contained HTML page about runs.

    Args:
        runs: run folders.
        out: the file to write; its folder is made if need be.
        references: for a world, named sets of returns to compare with, such as those of the
            episodes in the log: `{"pendulum": {"behaviour": returns}}`.
        films: whether to play and draw an episode of each run.

    Returns:
        The file.

    Raises:
        DataError: if a folder is not a run or is damaged.
        ConfigError: if there are no runs, or one is given twice.
    """
    folders = [Path(run) for run in runs]
    if not folders:
        raise ConfigError("a report needs at least one run folder.")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("a run folder is given twice; give each once.")
    text = page(entries([read_run(folder) for folder in folders]), references or {}, films)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, out)
    return out


def entries(records: Sequence[RunRecord]) -> list[Entry]:
    """The runs by the name of their method, and by their folder's as well where that is not enough.

    In each world the same label has the same colour.
    """
    keys = [(record.env, record.method) for record in records]
    labels = [
        record.method if keys.count(key) == 1 else f"{record.method} · {record.folder.name}"
        for record, key in zip(records, keys, strict=True)
    ]
    index = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return [Entry(record, index[label], label) for record, label in zip(records, labels, strict=True)]


def page(runs: Sequence[Entry], references: References, films: bool) -> Html:
    """The whole document."""
    worlds = list(dict.fromkeys(run.record.env for run in runs))
    title = f"{_listing([run.label for run in runs])} on {_listing([world or 'a log' for world in worlds])}"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Html(files("habitus.report").joinpath("page.css").read_text(encoding="utf-8"))),
    )
    sections = [_world(world, [run for run in runs if run.record.env == world], references, films) for world in worlds]
    body = el("body", el("main", _header(title, runs), *sections, _settings(runs), _colophon()))
    return join(Html("<!doctype html>\n"), el("html", head, body, lang="en"))


def _listing(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _header(title: str, runs: Sequence[Entry]) -> Html:
    seconds = sum(run.record.seconds for run in runs)
    seeds = sum(len(run.record.seeds) for run in runs)
    facts = [count(len(runs), "run"), count(seeds, "seed"), f"{duration(seconds)} of learning"]
    started = sorted(str(run.record.config["started"])[:10] for run in runs if "started" in run.record.config)
    facts += [f"started {started[0]}"] if started else []
    parts = [el("p", "habitus report", class_="kicker"), el("h1", title), el("p", " · ".join(facts), class_="facts")]
    return el("header", *parts, *(_unfinished(run) for run in runs if not run.record.complete))


def _unfinished(run: Entry) -> Html:
    where = f" on {run.record.env}" if run.record.env else ""
    left, asked = len(run.record.policies), len(run.record.config["seeds"])
    return el("p", f"{run.label}{where} did not finish: {left} of {asked} seeds left a policy.", class_="notice")


def _world(world: str | None, runs: Sequence[Entry], references: References, films: bool) -> Html:
    """All that is said of the runs in one world."""
    given = references.get(world or "", {})
    contenders = [_contender(run) for run in runs if run.record.evaluations]
    levels = [Contender(name, None, np.ravel(np.asarray(returns, float)), "episode") for name, returns in given.items()]
    parts: list[Html | None] = [el("h2", world or "From a log alone")]
    if contenders:
        parts.append(evaluation_table(contenders, levels))
        if any(contender.unit == "episode" for contender in contenders):
            parts.append(el("p", ONE_SEED, class_="note"))
    else:
        parts.append(
            el("p", "No evaluations were recorded. Learn with evaluations=… and a world to act in.", class_="notice")
        )
    parts += [_legend(runs, levels), _return_chart(runs, levels), _metric_charts(runs)]
    if films and world is not None:
        parts.append(films_of(world, runs))
        parts.append(acts_of(world, runs))
    return el("section", *parts)


def _contender(run: Entry) -> Contender:
    """The scores that stand for a run: those of its seeds, or those of its episodes if it has one seed."""
    final = run.record.evaluations[-1]
    several = len(final.returns) > 1
    return Contender(
        run.label,
        run.index,
        final.scores if several else final.returns[0],
        "seed" if several else "episode",
        seeds=run.record.seeds,
        episodes=sum(part.size for part in final.returns),
        length=float(np.concatenate(final.lengths).mean()),
        success=None if final.success is None else float(final.success.mean()),
    )


def _legend(runs: Sequence[Entry], levels: Sequence[Contender]) -> Html | None:
    """Which line is which; not needed for one alone."""
    names = [(style_of(run.index), run.label) for run in runs] + [(level.style, level.label) for level in levels]
    if len(names) == 1:
        return None
    return el("p", *(el("span", swatch(style), name) for style, name in names), class_="legend")


def _x_label(runs: Sequence[Entry]) -> str:
    kinds = {run.record.acts for run in runs}
    return "steps" if len(kinds) == 2 else "environment steps" if kinds == {True} else "updates"


def _return_chart(runs: Sequence[Entry], levels: Sequence[Contender]) -> Html | None:
    """Evaluation return over steps, if any run was evaluated more than once."""
    lines = []
    for run in runs:
        moments = run.record.evaluations
        if len(moments) > 1:
            curve = Curve(np.array([float(m.step) for m in moments]), np.array([m.scores for m in moments]))
            lines.append(line(run.label, run.index, curve))
    drawn = [one for one in lines if one is not None]
    if not drawn:
        return None
    references = [(level.label, level.interval) for level in levels]
    label = _x_label(runs)
    return join(
        chart("Return in evaluation", drawn, label, references=references, tall=True), curve_table(drawn, label)
    )


def _metric_charts(runs: Sequence[Entry]) -> Html | None:
    """What the learners report of themselves, one small chart a metric."""
    names = sorted(
        {name for run in runs for name in run.record.curves if name not in HIDDEN},
        key=lambda name: ("return" not in name, "loss" not in name, name),
    )
    charts = []
    for name in names:
        curves = [(run, run.record.curves[name]) for run in runs if name in run.record.curves]
        lines = [line(run.label, run.index, curve) for run, curve in curves]
        if drawn := [one for one in lines if one is not None]:
            charts.append(chart(name, drawn, _x_label(runs)))
    if not charts:
        return None
    note = f"Means over the {_x_label(runs)} since the point before; bands are 95 % confidence intervals over seeds."
    return join(el("h3", "While learning"), el("p", note, class_="note"), el("div", *charts, class_="charts"))


def _settings(runs: Sequence[Entry]) -> Html:
    return el(
        "section",
        el("h2", "How it was done"),
        *(
            el(
                "details",
                el(
                    "summary",
                    swatch(style_of(run.index)),
                    f"{run.label}",
                    el("small", f" {run.record.env or 'no world'}"),
                ),
                settings_table(run.record),
                open="" if i == 0 else None,
            )
            for i, run in enumerate(runs)
        ),
        el("details", el("summary", "Machine and versions"), versions_table([run.record for run in runs])),
    )


def _colophon() -> Html:
    return el(
        "footer",
        el(
            "p",
            "Estimates are interquartile means over seeds, or over episodes where there is one seed; intervals are "
            "95 % bootstrap intervals, expanded to the width of Student’s t because seeds are few. Bands hold at each "
            "point by itself. Written by habitus on ",
            el("time", f"{datetime.date.today():%Y-%m-%d}"),
            ".",
        ),
    )
