"""Writes the pages that follow from the code and from `results/`: `docs/claims.md`, `docs/methods/`, `docs/methods.md`.

make docs
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from habitus.claims.comparison import NAME, page
from habitus.core.card import Card, cards
from habitus.measure import standard_sets
from habitus.train.recipe import comments

HERE = Path(__file__).parent
ROOT = HERE.parent
BEGIN, END = "<!-- standard sets: made from results/ by make docs -->", "<!-- end of standard sets -->"


def result(slug: str) -> dict[str, Any] | None:
    """The committed result of a claim."""
    path = ROOT / "results" / f"{slug}.json"
    return json.loads(path.read_text()) if path.exists() else None


def number(value: float | None) -> str:
    """A figure for a table."""
    return "" if value is None else f"{value:.4g}"


def measures(found: dict[str, Any]) -> str:
    """The figures of a claim as a table."""
    rows = [
        "| measure | ours | baseline | difference | 95 % interval | condition | holds |",
        "|---|---|---|---|---|---|---|",
    ]
    for m in found["measures"]:
        low, high = m["ci"]
        interval = "" if low is None and high is None else f"{number(low)} … {number(high)}"
        cells = (m["name"], number(m["ours"]), number(m["baseline"]), number(m["difference"]), interval, m["condition"])
        rows.append("| " + " | ".join([*cells, "yes" if m["holds"] else "**no**"]) + " |")
    return "\n".join(rows)


def claim_section(card: Card, found: dict[str, Any]) -> str:
    """One claim, whole."""
    machine = found["machine"]
    notes = "\n".join(f"- {note}" for note in found["notes"])
    return f"""## {card.slug}: {found["verdict"]}

{card.title} ([arXiv {card.arxiv}](https://arxiv.org/abs/{card.arxiv})). {found["claim"]}

{measures(found)}

Seeds {", ".join(map(str, found["seeds"]))}; {found["wall_seconds"] / 60:.0f} minutes on {machine["cores"]} cores
of {machine["cpu"]}, {found["date"]}, commit `{(found["commit"] or "")[:10]}`.
Repeat: `habitus claim {card.slug} --out results`.

{notes}
"""


def claims_page() -> str:
    """`docs/claims.md`."""
    rows, sections = [], []
    for card in cards().values():
        found = result(card.slug)
        if found is None:
            if card.paper:
                rows.append(f"| {card.slug} | not run yet | {card.title} |")
            continue
        anchor = f"{card.slug}-{found['verdict'].replace(' ', '-')}"
        rows.append(f"| [{card.slug}](#{anchor}) | {found['verdict']} | {found['claim']} |")
        sections.append(claim_section(card, found))
    head = """# Claims

Each paper's headline claim is an experiment with its seeds, its budget and its conditions fixed before it
ran. A verdict is *reproduced* if every condition holds, *not reproduced* if one is refuted (even the
favourable end of its interval misses it), and *inconclusive* otherwise. No condition is changed after a
result is seen. This page is made from `results/` by `make docs`.

| method | verdict | claim |
|---|---|---|
"""
    return head + "\n".join(rows) + "\n\n" + "\n".join(sections)


def method_page(card: Card) -> str:
    """`docs/methods/<slug>.md`: what the file says of itself, its hyperparameters, its claim, its citation."""
    source = ROOT / "src" / "habitus" / card.file
    text = source.read_text()
    about = (ast.get_docstring(ast.parse(text)) or "").strip()
    names = [card.entry] + [cls for _, cls in card.variants]
    tables = "\n\n".join(filter(None, (hyperparameters(text, name) for name in names)))
    slugs = " ".join(f"`{slug}`" for slug in [card.slug, *(slug for slug, _ in card.variants)])
    found = result(card.slug)
    verdict = (
        f"[{found['verdict']}](../claims.md)" if found else ("not run yet" if card.paper else "a baseline: it has none")
    )
    return f"""# {card.slug}

{about}

|  |  |
|---|---|
| kind | {card.kind} |
| slugs | {slugs} |
| learns from | {", ".join(card.data) or "-"} |
| actions | {", ".join(card.actions)} |
| file | [`{card.file}`](../../src/habitus/{card.file}) |
| claim | {verdict} |

{tables}

```bibtex
{card.bibtex()}
```
"""


def hyperparameters(text: str, name: str) -> str:
    """The annotated fields of a class and the comments beside them, as a table; then those that it inherits."""
    tree, lines = ast.parse(text), text.splitlines()
    recipe = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name), None)
    if recipe is not None:
        return arguments_table(recipe, comments(text, name))
    cls = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if cls is None:
        return ""
    rows = []
    for field in (n for n in cls.body if isinstance(n, ast.AnnAssign) and n.value is not None):
        if not isinstance(field.target, ast.Name) or ast.unparse(field.annotation).startswith("ClassVar"):
            continue
        assert field.value is not None
        if ast.unparse(field.value) == "eqx.field(static=True)":
            continue
        own = lines[field.end_lineno - 1]  # type: ignore[operator]
        comment = own.split("  # ", 1)[1] if "  # " in own else comment_above(lines, field.lineno)
        given = field.value.keywords if isinstance(field.value, ast.Call) else []
        default = ast.unparse(next((k.value for k in given if k.arg == "default"), field.value))
        rows.append(f"| `{field.target.id}` | `{default}` | {comment.replace('|', chr(92) + '|')} |")
    head = f"`{name}`\n\n| hyperparameter | default | |\n|---|---|---|\n"
    parts = [head + "\n".join(rows)] if rows else []
    for base in (ast.unparse(b) for b in cls.bases):
        imports = [n for n in tree.body if isinstance(n, ast.ImportFrom) and "habitus.methods" in (n.module or "")]
        home = next((n.module for n in imports if base in [a.name for a in n.names]), None)
        if home is None:
            parts.append(hyperparameters(text, base))
        else:
            file = ROOT / "src" / Path(*home.split(".")).with_suffix(".py")
            parts.append(hyperparameters(file.read_text(), base))
    return "\n\n".join(filter(None, parts))


def comment_above(lines: list[str], number: int) -> str:
    """The comment that ends just above a line, which is counted from 1."""
    found: list[str] = []
    for line in reversed(lines[: number - 1]):
        if not line.strip().startswith("# "):
            break
        found.insert(0, line.strip()[2:])
    return " ".join(found)


def arguments_table(recipe: ast.FunctionDef, said: dict[str, str]) -> str:
    """The keyword arguments of a recipe and the comments beside them, as a table."""
    given = zip(recipe.args.kwonlyargs, recipe.args.kw_defaults, strict=True)
    rows = [
        f"| `{arg.arg}` | `{ast.unparse(default)}` | {said[arg.arg].replace('|', chr(92) + '|')} |"
        for arg, default in given
        if default is not None and arg.arg != "stages"
    ]
    return f"`{recipe.name}`\n\n| argument | default | |\n|---|---|---|\n" + "\n".join(rows) if rows else ""


def index_page() -> str:
    """`docs/methods.md`."""
    rows = ["| method | family | kind | claim | paper |", "|---|---|---|---|---|"]
    for card in cards().values():
        found = result(card.slug)
        verdict = found["verdict"] if found else ("not run yet" if card.paper else "")
        rows.append(
            f"| [{card.slug}](methods/{card.slug}.md) | {card.family} | {card.kind} | {verdict} | {card.title} |"
        )
    return "# Methods\n\nMade from the files themselves by `make docs`.\n\n" + "\n".join(rows) + "\n"


def main() -> None:
    """Writes every page."""
    (HERE / "methods").mkdir(exist_ok=True)
    (HERE / "claims.md").write_text(claims_page())
    (HERE / "methods.md").write_text(index_page())
    if compared := result(NAME):
        (HERE / "offline.md").write_text(page(compared))
    if found := result(standard_sets.NAME):
        path = HERE / "guide" / "data.md"
        before, after = path.read_text().split(BEGIN)[0], path.read_text().split(END)[1]
        path.write_text(f"{before}{BEGIN}\n\n{standard_sets.table(found)}\n\n{END}{after}")
    for card in cards().values():
        (HERE / "methods" / f"{card.slug}.md").write_text(method_page(card))


if __name__ == "__main__":
    main()
