"""Charts as inline SVG that stretches with the page, their labels as text that does not.

The drawing has no size of its own (`preserveAspectRatio="none"`, strokes that do not scale), so a
chart fills a phone as well as a desk, and the labels around it stay readable. Colours are classes
(`run-0`, `run-1`, ...) that the style sheet defines for light and dark.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from habitus.measure.statistics import Interval, bootstrap_band
from habitus.report.html import Html, el, join
from habitus.report.read import Curve
from habitus.report.scale import Scale, labels, number, wants_log

COLOURS = 8  # classes run-0 to run-7 in page.css
POINTS = 400  # more than a line on a screen can show
STRIP_TICKS = 5
SIZE = 1000  # of the drawing, in its own units
BARS = 40  # of a histogram
PANELS = 3  # rows of small multiples, at most


@dataclasses.dataclass(frozen=True)
class Line:
    """One run in a chart.

    Attributes:
        label: name of the run.
        index: of the run in the report, from which its colour and dashes follow.
        step, middle, low, high: the estimate and its band; the band is infinite for a single seed.
    """

    label: str
    index: int
    step: Float[np.ndarray, " points"]
    middle: Float[np.ndarray, " points"]
    low: Float[np.ndarray, " points"]
    high: Float[np.ndarray, " points"]


def line(label: str, index: int, curve: Curve) -> Line | None:
    """The interquartile mean over seeds with its confidence band, where every seed has a finite value."""
    keep = np.flatnonzero(np.isfinite(curve.value).all(axis=1))
    if keep.size == 0:
        return None
    keep = keep[np.unique(np.linspace(0, keep.size - 1, min(keep.size, POINTS)).round().astype(int))]
    return Line(label, index, curve.step[keep], *bootstrap_band(curve.value[keep]))


def style_of(index: int) -> str:
    """The classes that draw a run: a colour, and dashes once the colours are used up or alike."""
    return f"run-{index % COLOURS} dash-{index % 3}"


def chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    *,
    references: Sequence[tuple[str, Interval]] = (),
    tall: bool = False,
) -> Html:
    """A line chart over steps, with bands, grid, axes and a description in words.

    Args:
        title: of the chart, as text.
        lines: at least one.
        x_label: what the steps count.
        references: named levels to compare with, drawn across.
        tall: the main chart of a section, not one of many.
    """
    finite = np.concatenate([part[np.isfinite(part)] for one in lines for part in (one.middle, one.low, one.high)])
    levels = [value for _, level in references for value in (level.estimate, level.low, level.high)]
    log = wants_log(finite) and not references
    y = Scale.over([*finite, *levels], log=log)
    x = Scale(min(0.0, *(one.step[0] for one in lines)), max(one.step[-1] for one in lines) or 1.0)
    drawing = join(
        *(_rule(y.at(tick)) for tick in y.ticks()),
        *(_level(y, level) for _, level in references),
        *(_band(one, x, y) for one in lines),
        *(_stroke(one, x, y) for one in lines),
    )
    svg = el(
        "svg",
        drawing,
        viewBox=f"0 0 {SIZE} {SIZE}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title}. {describe(lines, x_label, references)}",
    )
    note = el("small", " log scale") if log else None
    return el(
        "figure",
        el("figcaption", title, note),
        el("div", _ticks("y", y, 5), el("div", svg, class_="plot"), _ticks("x", x, 4), class_="axes"),
        el("p", x_label, class_="x-label") if tall else None,
        class_="chart tall" if tall else "chart",
    )


def describe(lines: Sequence[Line], x_label: str, references: Sequence[tuple[str, Interval]] = ()) -> str:
    """The chart in words, for who cannot see it."""
    parts = [
        f"{one.label}: from {number(one.middle[0])} to {number(one.middle[-1])} after {number(one.step[-1])} {x_label}"
        for one in lines
    ]
    parts += [f"{name}: {number(level.estimate)}" for name, level in references]
    return "; ".join(parts) + "."


def strip(interval: Interval, scores: Float[np.ndarray, " n"], scale: Scale, style: str, label: str) -> Html:
    """One row of a dot plot: the scores as faint ticks, the estimate as a dot on its interval."""
    middle = SIZE // 2
    grid = "".join(f"M{x} -200V1200" for x in _units(scale.place(np.array(scale.ticks(STRIP_TICKS)))))
    ticks = "".join(f"M{x} 250V750" for x in _units(scale.place(np.asarray(scores, float))))
    dot = _units(scale.place(np.array([interval.estimate])))[0]
    parts = [el("path", d=grid, class_="rule"), el("path", d=ticks, class_="score")]
    if interval.bounded:
        low, high = _units(scale.place(np.array([interval.low, interval.high])))
        parts.append(el("path", d=f"M{low} {middle}H{high}", class_="whisker"))
    parts.append(el("path", d=f"M{dot} {middle}h0", class_="dot"))
    svg = el("svg", *parts, viewBox=f"0 0 {SIZE} {SIZE}", preserveAspectRatio="none", role="img", aria_label=label)
    return el("div", svg, class_=f"strip {style}")


def strip_axis(scale: Scale) -> Html:
    """The labels below a column of strips."""
    return _ticks("x", scale, STRIP_TICKS)


def trace(label: str, index: int, values: Float[np.ndarray, " steps"]) -> Line:
    """One value for each step, without a band."""
    nothing = np.full(len(values), np.inf)
    return Line(label, index, np.arange(len(values), dtype=float), np.asarray(values, float), -nothing, nothing)


def histogram(title: str, values: Float[np.ndarray, " n"], unit: str, style: str) -> Html:
    """How often each value occurred, up to the 99th percentile; the rest is counted in the last bar."""
    middle, high = (float(q) for q in np.quantile(values, (0.5, 0.99)))
    x = Scale(0.0, high * 1.05 or 1.0)
    counts, edges = np.histogram(np.minimum(values, high), bins=BARS, range=(x.low, x.high))
    places, heights = x.place(edges), counts / max(counts.max(), 1)
    bars = "".join(
        f"M{left} {SIZE}V{top}H{right}V{SIZE}Z"
        for left, right, top in zip(*(_units(p) for p in (places[:-1], places[1:], 1 - heights)), strict=True)
        if top < SIZE
    )
    facts = f"median {number(middle, 3)} {unit}, 99 % within {number(high, 3)} {unit}"
    about = f"{title}: {facts}, of {len(values)}."
    svg = el(
        "svg", el("path", d=bars, class_=f"bar {style}"), viewBox=f"0 0 {SIZE} {SIZE}", preserveAspectRatio="none",
        role="img", aria_label=about,
    )  # fmt: skip
    return el(
        "figure",
        el("figcaption", title, el("small", f" {facts}")),
        el("div", el("div"), el("div", svg, class_="plot"), _ticks("x", x, 4), class_="axes"),
        el("p", unit, class_="x-label"),
        class_="chart",
    )


def multiples(title: str, names: Sequence[str], chunks: Float[np.ndarray, "moments draws rows n"], style: str) -> Html:
    """Lines at several moments: a row of panels for each of the first three columns, a line for each draw.

    Args:
        names: of the moments.
    """
    shown, colour = min(chunks.shape[3], PANELS), style.partition(" ")[0]  # dashes would hide a bundle of lines
    y = Scale(-1.5, 1.5)
    across = np.linspace(0, 1, chunks.shape[2])

    def panel(lines: Float[np.ndarray, "draws rows"], about: str) -> Html:
        paths = ("M" + "L".join(_points(across, y.place(line))) for line in lines)
        drawing = join(_rule(y.at(0.0)), *(el("path", d=path, class_=f"stroke {colour}") for path in paths))
        return el("svg", drawing, viewBox=f"0 0 {SIZE} {SIZE}", preserveAspectRatio="none", role="img",
                  aria_label=about)  # fmt: skip

    cells = [
        el("div", panel(chunks[moment, :, :, column], f"{title}: entry {column} of the action, {name}"))
        for column in range(shown)
        for moment, name in enumerate(names)
    ]
    heads = [el("small", name) for name in names]
    style_ = f"--across:{len(names)}"
    return el("figure", el("figcaption", title), el("div", *heads, *cells, class_="panels", style=style_),
              class_="chart multiples")  # fmt: skip


def swatch(style: str) -> Html:
    """A piece of the line of a run, for legends and tables."""
    path = el("path", d="M0 5H28", class_="stroke")
    return el("svg", path, viewBox="0 0 28 10", class_=f"swatch {style}", aria_hidden="true")


def _units(places: Float[np.ndarray, " n"]) -> list[int]:
    """Places in [0, 1] in units of the drawing, kept within reach of it."""
    return [round(float(p) * SIZE) for p in np.clip(np.nan_to_num(places), -1.0, 2.0)]


def _points(places_x: Float[np.ndarray, " n"], places_y: Float[np.ndarray, " n"]) -> list[str]:
    return [f"{x} {y}" for x, y in zip(_units(places_x), _units(1 - places_y), strict=True)]


def _band(one: Line, x: Scale, y: Scale) -> Html | None:
    if not np.isfinite(one.low).all() or not np.isfinite(one.high).all():
        return None
    step = x.place(one.step)
    there, back = _points(step, y.place(one.high)), _points(step[::-1], y.place(one.low[::-1]))
    return el("path", d="M" + "L".join(there + back) + "Z", class_=f"band {style_of(one.index)}")


def _stroke(one: Line, x: Scale, y: Scale) -> Html:
    points = _points(x.place(one.step), y.place(one.middle))
    path = "M" + "L".join(points) + ("h0" if len(points) == 1 else "")
    return el("path", d=path, class_=f"stroke {style_of(one.index)}")


def _rule(place: float) -> Html:
    at = _units(np.array([1 - place]))[0]
    return el("path", d=f"M0 {at}H{SIZE}", class_="rule")


def _level(y: Scale, level: Interval) -> Html:
    middle = _units(np.array([1 - y.at(level.estimate)]))[0]
    line = el("path", d=f"M0 {middle}H{SIZE}", class_="level")
    if not level.bounded:
        return line
    low, high = _units(1 - y.place(np.array([level.low, level.high])))
    return join(el("path", d=f"M0 {low}H{SIZE}V{high}H0Z", class_="level-band"), line)


def _ticks(axis: str, scale: Scale, most: int) -> Html:
    """The labels along an axis, each at its place."""
    values = scale.ticks(most)
    places = (f"--at:{scale.at(value):.4f}" for value in values)
    spans = (el("span", text, style=at, class_=f"tick-{axis}") for text, at in zip(labels(values), places, strict=True))
    return el("div", *spans, class_=f"{axis}-ticks", aria_hidden="true")
