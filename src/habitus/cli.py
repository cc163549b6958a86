"""The command line: `habitus learn | evaluate | measure | data | claim | methods | cite | report | serve | export`.

Only the standard library is imported to print help or to list methods.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from habitus.core.card import Card, card, cards
from habitus.core.errors import ConfigError, HabitusError

Rows = Sequence[tuple[str, ...]]
Command = Callable[..., argparse.ArgumentParser]  # (name, do, about, into=the top level): adds a command


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; errors of habitus are one sentence and exit status 2."""
    try:
        _run(list(sys.argv[1:] if argv is None else argv))
    except HabitusError as error:
        print(f"habitus: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of our output has left
        raise SystemExit(0) from None


def _run(argv: list[str]) -> None:
    if argv[:1] == ["learn"]:
        learn_command(argv[1:])
        return
    parser = _parser()
    args = parser.parse_args(argv)
    if not hasattr(args, "do"):
        parser.print_help()
        return
    args.do(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("habitus", description="Learn, judge and compare decision policies.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(metavar="COMMAND")

    def command(name: str, do: Callable[[Any], None], about: str, into: Any = commands) -> argparse.ArgumentParser:
        made = into.add_parser(name, help=about, description=about)
        made.set_defaults(do=do)
        return made

    command("learn", lambda _: None, "improve a policy: habitus learn METHOD [--help]")
    _judging_options(command)
    _data_options(command)
    _research_options(command)
    _using_options(command)
    return parser


def _judging_options(command: Command) -> None:
    """What policies and data sets are worth."""
    sub = command("evaluate", _evaluate, "run whole episodes of learned policies")
    sub.add_argument("run", type=Path, help="a run folder, or a saved policy")
    sub.add_argument("--env", help="a world; by default the run's own")
    sub.add_argument("--episodes", type=int, default=20)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--offline", metavar="DATA", help="estimate from a log instead, without acting")
    sub.add_argument("--discount", type=float, default=0.99, help="of the estimates from a log")
    sub.add_argument("--updates", type=int, default=10_000, help="of what these fit to the log")
    sub = command("measure", _measure, "apply an instrument to a data set")
    sub.add_argument("slug", help="an instrument, such as dataset-perspective")
    sub.add_argument("target", help="a data set: a file, a folder, or the name of a standard one")
    sub.add_argument("--reference", help="a data set to measure against, where the instrument needs one")


def _data_options(command: Command) -> None:
    """Data sets."""
    data: argparse.ArgumentParser = command("data", lambda _: data.print_help(), "make, inspect and convert data sets")
    kinds = data.add_subparsers(metavar="ACTION")
    sub = command("make", _data_make, "make a standard data set", kinds)
    sub.add_argument(
        "name", help="such as pendulum-medium or hopper-medium-replay; a task, such as hopper, for all of its sets"
    )
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--size", type=int, help="rows")
    sub.add_argument("--out", type=Path, help="where to write it; by default the cache")
    sub = command("table", _data_table, "what each standard data set holds", kinds)
    sub.add_argument("tasks", nargs="*", help="such as hopper; all by default")
    sub.add_argument("--out", type=Path, help="folder for standard-sets.json")
    sub = command("inspect", _data_inspect, "what a data set holds, what is wrong with it, what suits it", kinds)
    sub.add_argument("data")
    sub = command("convert", _data_convert, "write a data set in another format", kinds)
    sub.add_argument("data")
    sub.add_argument("out", type=Path, help="*.npz, *.hdf5 (D4RL's layout), or a folder: */1.0.0 (RLDS), else Minari's")
    sub.add_argument("--format", help="npz, d4rl, minari, lerobot or rlds; by default as the name says")


def _research_options(command: Command) -> None:
    """Methods and their claims."""
    sub = command("bench", _bench, "compare methods on the same data with the same budget")
    sub.add_argument("what", choices=["offline"], help="every offline learner on the standard logs")
    sub.add_argument("--smoke", action="store_true", help="a tiny budget; its figures mean nothing")
    sub.add_argument("--out", type=Path, help="folder for offline-comparison.json")
    sub = command("claim", _claim, "run the experiment behind a paper's headline claim")
    sub.add_argument("slug", nargs="?", help="a method; none to list the claims and their verdicts")
    sub.add_argument("--smoke", action="store_true", help="the same code with a tiny budget")
    sub.add_argument("--out", type=Path, help="folder for the result; by default nothing is written")
    sub = command("methods", _methods, "list the methods")
    sub.add_argument("--json", action="store_true")
    sub = command("cite", _cite, "print the BibTeX entry of a method")
    sub.add_argument("slug")


def _using_options(command: Command) -> None:
    """What becomes of a run."""
    sub = command("report", _report, "write one page about one or more runs")
    sub.add_argument("runs", type=Path, nargs="+")
    sub.add_argument("--out", type=Path, default=Path("report.html"))
    sub = command("export", _export, "write a policy as files that act without habitus")
    sub.add_argument("run", type=Path, help="a run folder, or a saved policy")
    sub.add_argument("--to", choices=["onnx", "stablehlo", "safetensors"], required=True)
    sub.add_argument("--policy", type=int, default=0, help="which of the run's seeds, counted from 0")
    sub.add_argument("--out", type=Path, help="folder for the files; by default RUN/export/FORMAT")
    sub = command("serve", _serve, "answer observations with actions, over WebSocket")
    sub.add_argument("run", type=Path, help="a run folder, or a saved policy")
    sub.add_argument("--policy", type=int, default=0, help="which of the run's seeds, counted from 0")
    sub.add_argument("--hz", type=float, default=50.0, help="control rate; an answer must be ready within 1/hz")
    sub.add_argument("--host", default="127.0.0.1", help="anything but loopback needs HABITUS_TOKEN")
    sub.add_argument("--port", type=int, default=8765)
    sub.add_argument("--batch", type=int, default=1, help="most observations of one request")
    sub.add_argument("--chunk", type=int, default=1, help="actions of an answer that is a chunk")
    sub.add_argument("--sessions", type=int, default=16, help="how many may be connected at once")


def _version() -> str:
    from habitus import __version__

    return f"habitus {__version__}"


def table(header: Sequence[str], rows: Rows) -> None:
    """Prints a table as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table

    made = Table(*header, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        made.add_row(*row)
    Console().print(made)


# --- learn


def learn_command(argv: list[str]) -> None:
    """`habitus learn METHOD`: the options of `learn`, and the hyperparameters of a learner; or a recipe."""
    if not argv or argv[0].startswith("-"):
        print("usage: habitus learn METHOD [--env WORLD] [--data DATA] [options]; METHOD --help lists them.")
        print("learners:", ", ".join(_learners()))
        print("recipes:", ", ".join(_recipes()))
        return
    if card(argv[0]).kind == "recipe":
        return _learn_recipe(*argv)
    import dataclasses

    import tyro

    from habitus.cli_options import LearnOptions, SourceOptions, named_source, plain_fields
    from habitus.core.protocols import Learner, hyperparameters
    from habitus.train.loop import learn
    from habitus.train.setup import entry, source_class, wrap_log

    slug, rest = argv[0], argv[1:]
    learner = entry(slug)
    if not (isinstance(learner, type) and issubclass(learner, Learner)):
        usable = ", ".join(_learners() + _recipes())
        raise ConfigError(f"{slug} is a {card(slug).kind}, not a learner or a recipe; use one of {usable}.")
    flat: Any = tyro.conf.OmitArgPrefixes
    fields: list[tuple[str, Any, Any]] = [
        ("options", flat[LearnOptions], dataclasses.field(default_factory=LearnOptions)),
        ("hyperparameters", flat[learner], dataclasses.field(default_factory=learner)),
    ]
    if "num_envs" not in {f.name for f in dataclasses.fields(learner)}:
        fields.append(("source", flat[SourceOptions], dataclasses.field(default_factory=SourceOptions)))
    if (through := named_source(rest)) is not None:
        made_of = plain_fields(source_class(through))
        fields.append((through.replace("-", "_"), made_of, dataclasses.field(default_factory=made_of)))
    arguments = dataclasses.make_dataclass("Arguments", fields)
    found: Any = tyro.cli(arguments, args=rest, prog=f"habitus learn {slug}", description=card(slug).title)
    options = found.options.resolved(slug)
    if through is not None:
        chosen = dataclasses.asdict(getattr(found, through.replace("-", "_")))
        chosen = {k: v for k, v in chosen.items() if v != getattr(made_of(), k)}
        env, data = options.pop("env"), options.pop("data")
        options["source"] = wrap_log(through, found.hyperparameters, data, env, chosen)
    elif hasattr(found, "source"):
        options["source_options"] = found.source.resolved()
    print(f"{slug}: " + ", ".join(f"{k}={v}" for k, v in hyperparameters(found.hyperparameters).items()))
    _finished(learn(found.hyperparameters, **options))


def _learn_recipe(slug: str, *argv: str) -> None:
    """`habitus learn RECIPE`: its keyword arguments are options, their comments the help."""
    import dataclasses
    from typing import Annotated

    import tyro

    from habitus.cli_options import RecipeOptions
    from habitus.train.loop import learn
    from habitus.train.recipe import arguments
    from habitus.train.setup import entry

    flat: Any = tyro.conf.OmitArgPrefixes
    fields = [(a.name, Annotated[a.kind, tyro.conf.arg(help=a.comment)], a.default) for a in arguments(entry(slug))]
    own: Any = dataclasses.make_dataclass("Own", fields, frozen=True)
    parts = [("options", flat[RecipeOptions], RecipeOptions()), ("own", flat[own], own())]
    chosen = dataclasses.make_dataclass("Arguments", parts, frozen=True)
    found: Any = tyro.cli(chosen, args=argv, prog=f"habitus learn {slug}", description=card(slug).title)
    settings = {name: getattr(found.own, name) for name, _, _ in fields}
    print(f"{slug}: " + ", ".join(f"{k}={v}" for k, v in settings.items()))
    _finished(learn(slug, **found.options.resolved(slug), **settings))


def _finished(run: Any) -> None:
    """Says where a run is and how it did."""
    if run.interrupted:
        print(f"interrupted; go on with --folder {run.folder} --resume")
    if run.evaluations:
        from habitus.measure.statistics import bootstrap_ci

        print(f"return of the last evaluation: {bootstrap_ci(run.returns[-1])} over {len(run.seeds)} seeds")
    print(run.folder)


def _learners() -> list[str]:
    found = [c for c in cards().values() if c.kind == "learner"]
    return sorted([c.slug for c in found] + [slug for c in found for slug, _ in c.variants])


def _recipes() -> list[str]:
    return sorted(c.slug for c in cards().values() if c.kind == "recipe")


# --- the others


def _policies(path: Path) -> tuple[list[Any], str | None]:
    """The policies of a run folder or of one saved policy, and the world of the run."""
    from habitus.core.policy import Deployed

    if (path / "policy.json").exists():
        return [Deployed.load(path)], None
    config = path / "config.json"
    if not config.exists():
        raise ConfigError(f"{path} is neither a run folder nor a saved policy.")
    folders = sorted((path / "policy").glob("seed-*"))
    if not folders:
        raise ConfigError(f"{path} has no saved policy yet; resume the run to its end.")
    return [Deployed.load(folder) for folder in folders], json.loads(config.read_text()).get("env")


def _one_policy(args: argparse.Namespace) -> Any:
    """The policy that `--policy` says, of the run."""
    policies, _ = _policies(args.run)
    if not 0 <= args.policy < len(policies):
        raise ConfigError(f"--policy must be from 0 to {len(policies) - 1}, but is {args.policy}.")
    return policies[args.policy]


def _evaluate(args: argparse.Namespace) -> None:
    from habitus.measure.evaluate import evaluate

    policies, world = _policies(args.run)
    if args.offline:
        return _evaluate_offline(policies, args)
    result = evaluate(policies, args.env or world, args.episodes, args.seed)
    table(("", args.env or world or ""), [tuple(row) for row in result.rows()])


def _evaluate_offline(policies: list[Any], args: argparse.Namespace) -> None:
    from habitus.measure.ope import evaluate_offline
    from habitus.train.standard import load

    log = load(args.offline)
    found = [evaluate_offline(p, log, discount=args.discount, updates=args.updates, seed=args.seed) for p in policies]
    head = ("discounted return", *(f"policy {i}" for i in range(len(found)))) if len(found) > 1 else ("", "return")
    table(head, [(name, *(str(one[name]) for one in found)) for name in found[0]])


def _bench(args: argparse.Namespace) -> None:
    from habitus.claims.comparison import FULL, SMOKE, compare

    compare(SMOKE if args.smoke else FULL, args.out, lambda line: print(line, flush=True))


def _measure(args: argparse.Namespace) -> None:
    from habitus.train.setup import entry
    from habitus.train.standard import load

    found = card(args.slug)
    if found.kind != "instrument":
        raise ConfigError(f"{args.slug} is a {found.kind}, not an instrument.")
    reference = load(args.reference) if args.reference else None
    result = entry(args.slug)(load(args.target), reference)
    table(("measure", "value"), [tuple(row) for row in result.rows()])


def _data_make(args: argparse.Namespace) -> None:
    from habitus.data.io import save
    from habitus.train.standard import make_offline, split_name, splits_of, tasks

    whole = args.name in tasks()
    if whole and args.out:
        raise ConfigError(
            f"{args.name} is a task of several data sets; with --out name one, such as {args.name}-expert."
        )
    wanted = [(args.name, split) for split in splits_of(args.name)] if whole else [split_name(args.name)]
    for task, split in wanted:
        dataset = make_offline(task, split, args.seed, args.size, quiet=False)
        print(dataset)
    if args.out:
        print(save(dataset, args.out))


def _data_table(args: argparse.Namespace) -> None:
    from habitus.measure.standard_sets import describe_sets

    describe_sets(args.tasks or None, args.out, lambda line: print(line, flush=True))


def _data_inspect(args: argparse.Namespace) -> None:
    from habitus.measure.advise import inspection
    from habitus.train.standard import load

    table(("", args.data), inspection(load(args.data)))


def _data_convert(args: argparse.Namespace) -> None:
    from pathlib import Path

    from rich.progress import Progress

    from habitus.data.io import convert, save
    from habitus.train.standard import load

    if not Path(args.data).exists():
        print(save(load(args.data), args.out, format=args.format))
        return
    with Progress(transient=True) as progress:
        task = progress.add_task("rows", total=None)
        print(
            convert(
                args.data,
                args.out,
                format=args.format,
                report=lambda rows, total: progress.update(task, advance=rows, total=total),
            )
        )


def _claim(args: argparse.Namespace) -> None:
    from habitus.claims.harness import claimed, run_claim
    from habitus.measure.results import read_result

    if args.slug is None:
        results = [(slug, read_result(slug)) for slug in claimed()]
        table(
            ("method", "verdict", "date"),
            [(s, r["verdict"] if r else "not run", r["date"] if r else "") for s, r in results],
        )
        return
    result = run_claim(args.slug, args.smoke, args.out)
    print(result["claim"], "\n")
    table(("measure", "value", "condition", "holds"), [
        (m["name"], f"{m['ours']:.4g}" + (f" against {m['baseline']:.4g}" if m["baseline"] is not None else ""),
         m["condition"], "yes" if m["holds"] else "no") for m in result["measures"]
    ])  # fmt: skip
    verdict = "smoke run: the verdict means nothing" if args.smoke else result["verdict"]
    print(f"\n{verdict} ({result['wall_seconds']:.0f} s)")


def _methods(args: argparse.Namespace) -> None:
    rows = [_method_row(c) for c in cards().values()]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    width = max(len(r["slug"]) for r in rows)
    for row in rows:
        print(f"{row['slug']:<{width}}  {row['family']:<10} {row['kind']:<10} {row['claim'] or '':<14} {row['title']}")


def _method_row(found: Card) -> dict[str, Any]:
    """A method as plain data."""
    from habitus.measure.results import read_result

    result = read_result(found.slug)
    verdict = result["verdict"] if result else None
    keys = ("slug", "title", "family", "kind")
    return {k: getattr(found, k) for k in keys} | {"paper": found.arxiv, "claim": verdict, "file": found.file}


def _cite(args: argparse.Namespace) -> None:
    print(card(args.slug).bibtex())


def _report(args: argparse.Namespace) -> None:
    from habitus.report.page import write_report

    print(write_report(args.runs, args.out).resolve())


def _serve(args: argparse.Namespace) -> None:
    import os

    from habitus.serve.server import PolicyServer

    policy = _one_policy(args)
    token = os.environ.get("HABITUS_TOKEN")  # not an option: those are shown to everyone on the machine
    limits = {"batch": args.batch, "chunk": args.chunk, "max_sessions": args.sessions}
    PolicyServer(policy, hz=args.hz, host=args.host, port=args.port, token=token, **limits).run()


def _export(args: argparse.Namespace) -> None:
    from habitus.serve.export import export

    folder = export(_one_policy(args), args.to, args.out or args.run / "export" / args.to)
    check = json.loads((folder / "manifest.json").read_text())["check"]
    print(f"acts as the policy does, to {max(check['largest_difference'].values()):.1g}")
    print(folder)


if __name__ == "__main__":
    main()
