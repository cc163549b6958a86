"""What a method file says of itself, readable without importing it."""

from __future__ import annotations

import ast
import dataclasses
from functools import cache
from pathlib import Path

from habitus.core.errors import HabitusError, UnknownName, suggest


@dataclasses.dataclass(frozen=True)
class Card:
    """The identity of a method, written as a literal `CARD = Card(...)` in its file.

    Attributes:
        title: title of the paper.
        authors: as BibTeX wants them, joined by ' and '.
        year: of publication.
        venue: journal, conference, or 'arXiv'.
        arxiv: arXiv identifier, or ''.
        kind: 'learner', 'recipe', 'source', 'wrapper' or 'instrument'.
        entry: name of the class or function in the file that is the method.
        data: what it learns from: any of 'log', 'env'.
        actions: which action spaces it handles: any of 'discrete', 'continuous'.
        variants: further learners in the file, as (slug, class name).
        paper: False for a baseline that is not one of the library's papers.
        slug, family, file: filled in from where the file lies.
    """

    title: str
    authors: str
    year: int
    venue: str
    arxiv: str
    kind: str
    entry: str
    data: tuple[str, ...] = ()
    actions: tuple[str, ...] = ("discrete", "continuous")
    variants: tuple[tuple[str, str], ...] = ()
    paper: bool = False
    slug: str = ""
    family: str = ""
    file: str = ""

    @property
    def module(self) -> str:
        """Dotted name of the file."""
        return f"habitus.methods.{self.family}.{self.slug.replace('-', '_')}"

    def bibtex(self) -> str:
        """The citation of the paper."""
        name = self.authors.split(" and ")[0].split(",")[0].replace(" ", "").lower()
        rows = {"title": f"{{{self.title}}}", "author": self.authors, "year": str(self.year)}
        rows["booktitle" if self.venue != "arXiv" else "journal"] = self.venue
        if self.arxiv:
            rows |= {"eprint": self.arxiv, "archivePrefix": "arXiv"}
        body = "\n".join(f"  {key} = {{{value}}}," for key, value in rows.items())
        entry = "inproceedings" if self.venue != "arXiv" else "article"
        return f"@{entry}{{{name}{self.year}{self.slug.replace('-', '')},\n{body}\n}}"


def read_card(path: Path) -> Card:
    """The card of one method file, by parsing it: nothing is imported or run."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "CARD":
            call = node.value
            assert isinstance(call, ast.Call)
            fields = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
            return Card(
                **fields,
                slug=path.stem.replace("_", "-"),
                family=path.parent.name,
                file=f"methods/{path.parent.name}/{path.name}",
            )
    raise HabitusError(f"{path} has no CARD = Card(...); every method file states what it is.")


@cache
def cards() -> dict[str, Card]:
    """Every method by its slug, ordered by family and slug."""
    folder = Path(__file__).parent.parent / "methods"
    files = sorted(p for p in folder.glob("*/*.py") if not p.name.startswith("_"))
    return {card.slug: card for card in map(read_card, files)}


def card(slug: str) -> Card:
    """The card of a method; for the slug of a variant, that of its file with `entry` replaced.

    Raises:
        UnknownName: with what is near.
    """
    if slug in cards():
        return cards()[slug]
    variants = {name: (found, cls) for found in cards().values() for name, cls in found.variants}
    if slug in variants:
        found, cls = variants[slug]
        return dataclasses.replace(found, entry=cls)
    raise UnknownName(f"no method is called {slug!r}: {suggest(slug, [*cards(), *variants])}")
