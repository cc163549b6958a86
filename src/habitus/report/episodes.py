"""What policies do, on the page: an episode of each, how long actions take, how plans age and come out of noise."""

from __future__ import annotations

from collections.abc import Sequence

from habitus.core.errors import HabitusError
from habitus.core.policy import Deployed
from habitus.report.acting import acting, denoising
from habitus.report.film import Film, film
from habitus.report.html import Html, el, join
from habitus.report.plots import chart, histogram, multiples, style_of, swatch, trace
from habitus.report.read import Entry, RunRecord
from habitus.report.scale import count, number

ACTING = (
    "Times are from one observation to one action, in Python, on the machine that wrote this page. A plan ages until "
    "it is replaced. Plans are drawn entry by entry of the action, in [-1, 1], over the steps they are for."
)


def films_of(world: str, runs: Sequence[Entry]) -> Html | None:
    """An episode of each run that left a policy."""
    figures = [_film(world, run) for run in runs if run.record.policies]
    return join(el("h3", "One episode each"), el("div", *figures, class_="films")) if figures else None


def _film(world: str, run: Entry) -> Html:
    """The policy of the middling seed in one episode, or the reason why it cannot be shown."""
    seed = _middling_seed(run.record)
    try:
        shown = film(run.record.policies[seed], world, seed)
    except HabitusError as error:
        return el("p", f"{run.label}: no episode to show: {str(error).rstrip('.')}.", class_="notice")
    return _player(shown, run, seed, name=f"film-{world}-{run.index}")


def acts_of(world: str, runs: Sequence[Entry]) -> Html | None:
    """How long actions took, how old plans grew, and how plans came out of noise."""
    times, ages, plans, notices = [], [], [], []
    for run in runs:
        if not run.record.policies:
            continue
        seed = _middling_seed(run.record)
        try:
            policy = Deployed.load(run.record.policies[seed])
            seen = acting(policy, world, seed)
        except HabitusError as error:
            notices.append(el("p", f"{run.label}: not timed: {str(error).rstrip('.')}.", class_="notice"))
            continue
        style = style_of(run.index)
        times.append(histogram(f"{run.label}: time to an action", 1e3 * seen.seconds, "ms", style))
        if seen.planned and seen.staleness is not None:
            ages.append(trace(run.label, run.index, seen.staleness))
        chain = denoising(policy, seen.first, seed)
        if chain is not None:
            names = [f"after {count(n, 'call')}" if n else "noise" for n in chain.calls]
            plans.append(multiples(f"{run.label}: plans for one observation", names, chain.chunks, style))
    if not times and not notices:
        return None
    timeline = [chart("Age of the plan in use, in steps", ages, "steps of the episode", tall=True)] if ages else []
    return join(el("h3", "How they act"), el("p", ACTING, class_="note"), el("div", *times, class_="charts"), *notices,
                *timeline, *plans)  # fmt: skip


def _middling_seed(record: RunRecord) -> int:
    """The seed whose final score is the median (the lower of two), so that the film flatters nobody."""
    seeds = sorted(record.policies)
    if record.evaluations:
        score = dict(zip(record.seeds, record.evaluations[-1].scores, strict=True))
        seeds = sorted((seed for seed in seeds if seed in score), key=lambda seed: score[seed]) or seeds
    return seeds[(len(seeds) - 1) // 2]


def _player(shown: Film, run: Entry, seed: int, name: str) -> Html:
    """A sheet of frames, played by CSS, with a check box that stops it."""
    seconds = min(max(shown.length * 0.04, 3.0), 12.0)
    style = (
        f"--columns:{shown.columns};--rows:{shown.rows};--seconds:{seconds:.2f}s;"
        f"aspect-ratio:{shown.width}/{shown.height};background-image:url({shown.sheet})"
    )
    which = (
        f"seed {seed}, the middling one of {len(run.record.policies)}"
        if len(run.record.policies) > 1
        else f"seed {seed}"
    )
    facts = f"return {number(shown.returned)} in {shown.length} steps"
    return el(
        "figure",
        el("figcaption", swatch(style_of(run.index)), el("strong", run.label), f" {which}: {facts}"),
        el("input", type="checkbox", id=name),
        el(
            "div",
            class_="screen",
            style=style,
            role="img",
            aria_label=f"Animation of one episode of {run.label}: {facts}.",
        ),
        el("label", el("span", "Pause", class_="when-playing"), el("span", "Play", class_="when-paused"), for_=name),
        class_="film",
    )
