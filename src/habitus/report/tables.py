"""The tables of the report: results with their intervals, settings, versions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from jaxtyping import Float

from habitus.measure.statistics import Interval, bootstrap_ci, iqm, paired_difference, probability_of_improvement
from habitus.report.html import Child, Html, el, join
from habitus.report.plots import Line, strip, strip_axis, style_of, swatch
from habitus.report.read import RunRecord
from habitus.report.scale import MINUS, Scale, duration, number


@dataclasses.dataclass(frozen=True)
class Contender:
    """A row of the results.

    Attributes:
        label: name of the run, or of what runs are compared with.
        index: place of the run in the report; None for what is no run.
        scores: returns, one a `unit`.
        unit: what was repeated, 'seed' or 'episode'.
        seeds: of the run.
        episodes: number of episodes behind the scores.
        length: mean length of these episodes in steps; None if unknown.
        success: share of these episodes that succeeded; None if unknown.
    """

    label: str
    index: int | None
    scores: Float[np.ndarray, " units"]
    unit: str
    seeds: tuple[int, ...] = ()
    episodes: int = 0
    length: float | None = None
    success: float | None = None

    @cached_property
    def interval(self) -> Interval:
        """Interquartile mean of the scores."""
        return bootstrap_ci(self.scores, iqm)

    @property
    def style(self) -> str:
        """Classes that draw it."""
        return "reference" if self.index is None else style_of(self.index)

    @property
    def basis(self) -> str:
        """What the interval is over, in words."""
        count = self.scores.size
        text = f"{count} {self.unit}{'s' if count > 1 else ''}"
        return text if self.unit == "episode" else f"{text} × {self.episodes // count} episodes"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the results: its title, the class of its cells, and what stands in each row."""

    title: str
    style: str
    cell: Callable[[Contender], Child]


def evaluation_table(contenders: Sequence[Contender], references: Sequence[Contender]) -> Html:
    """Final returns: estimate, interval, dot plot, and the difference to the first run."""
    rows = [*contenders, *references]
    ends = [end for row in rows for end in (row.interval.low, row.interval.high)]
    scale = Scale.over([*np.concatenate([row.scores for row in rows]), *ends])
    columns = [
        Column("Return", "figure", lambda row: _estimate(row.interval)),
        Column(
            "",
            "strip-cell",
            lambda row: strip(row.interval, row.scores, scale, row.style, f"{row.label}: {row.interval}"),
        ),
        Column("Over", "basis", lambda row: row.basis),
    ]
    if any(row.success is not None for row in rows):
        columns.append(Column("Success", "figure", lambda row: "" if row.success is None else f"{row.success:.0%}"))
    if any(row.length is not None for row in rows):
        columns.append(Column("Length", "figure", lambda row: "" if row.length is None else number(row.length)))
    columns += _comparison(contenders)
    body = [
        el(
            "tr",
            el("th", swatch(row.style), row.label, scope="row"),
            *(el("td", c.cell(row), class_=c.style, data_title=c.title or None) for c in columns),
        )
        for row in rows
    ]
    rest = [el("td")] * (len(columns) - 2)
    heads = [el("th", c.title, scope="col") if c.title else el("td") for c in columns]
    parts = (
        el("caption", "Final evaluation. Dots are interquartile means, lines 95 % intervals, ticks single scores."),
        el("thead", el("tr", el("td"), *heads)),
        el("tbody", *body),
        el("tfoot", el("tr", el("td"), el("td"), el("td", strip_axis(scale), class_="strip-cell"), *rest)),
    )
    return el("div", el("table", *parts, class_="results"), class_="wide")


def _estimate(interval: Interval) -> Html:
    text = str(interval).replace("-", MINUS)
    head, _, ends = text.partition(" ")
    return join(el("strong", head), " ", el("span", ends, class_="ends") if ends else None)


def _comparison(contenders: Sequence[Contender]) -> list[Column]:
    """The column that compares every run with the first; none if there is only one."""
    first, *rest = contenders
    if not rest:
        return []
    title: str
    compare: Callable[..., Interval]
    if len(first.seeds) > 1 and all(row.seeds == first.seeds for row in rest):
        title, compare = f"Gain on {first.label}, seed by seed", partial(paired_difference, statistic=iqm)
    else:
        title, compare = f"Chance to beat {first.label}", probability_of_improvement
    cells = {row.label: _estimate(compare(row.scores, first.scores)) for row in rest}
    return [Column(title, "figure", lambda row: cells.get(row.label, ""))]


def curve_table(lines: Sequence[Line], x_label: str) -> Html:
    """A chart as numbers: a row a step, a column a run."""
    at = [
        {step: Interval(*ends) for step, *ends in zip(one.step, one.middle, one.low, one.high, strict=True)}
        for one in lines
    ]
    steps = sorted({step for column in at for step in column})
    head = el("tr", el("th", x_label, scope="col"), *(el("th", one.label, scope="col") for one in lines))
    rows = (
        el("tr", el("th", f"{step:.0f}", scope="row"), *(_cell(column.get(step)) for column in at)) for step in steps
    )
    table = el("table", el("thead", head), el("tbody", *rows))
    return el("details", el("summary", "The same in numbers"), el("div", table, class_="wide"))


def _cell(interval: Interval | None) -> Html:
    return el("td", None if interval is None else _estimate(interval), class_="figure")


def settings_table(record: RunRecord) -> Html:
    """What was asked for: method, hyperparameters, source, seeds, command."""
    config = record.config
    general = {
        "method": record.method,
        "world": record.env or "none",
        "steps": config.get("steps"),
        "seeds": ", ".join(map(str, config["seeds"])),
        "wall time": duration(record.seconds),
        "started": config.get("started"),
        "command": config.get("command"),
        "folder": str(record.folder),
    }
    source = {f"source.{key}" if key != "kind" else "source": value for key, value in config["source"].items()}
    return join(
        _definitions({key: value for key, value in general.items() if value is not None} | source),
        el("h4", "Hyperparameters"),
        _definitions(config["hyperparameters"]),
    )


def versions_table(records: Sequence[RunRecord]) -> Html:
    """Machine, packages and commit; values that differ between runs are listed one after the other."""
    merged: dict[str, list[str]] = {}
    for record in records:
        for key, value in record.versions.items():
            if key == "git":
                value = _commit(value)
            text = _plain(value)
            if text and text not in merged.setdefault(key, []):
                merged[key].append(text)
    return _definitions({key: "; ".join(values) for key, values in merged.items() if values})


def _commit(git: Any) -> str:
    if not isinstance(git, dict) or not git.get("commit"):
        return ""
    return f"{str(git['commit'])[:12]}{', with changes' if git.get('changed') else ''}"


def _definitions(values: Mapping[str, Any]) -> Html:
    pairs = (el("div", el("dt", key), el("dd", _plain(value))) for key, value in values.items())
    return el("dl", *pairs)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
