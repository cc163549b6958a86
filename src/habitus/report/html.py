"""HTML and SVG that cannot be injected into: what is not `Html` already is escaped."""

from __future__ import annotations

import html


class Html(str):
    """Text that is markup. Everything else that goes into an element is escaped."""

    __slots__ = ()


Child = str | int | float | None

# Written without an end tag; the slash is what ends them within SVG.
VOID = frozenset({"input", "meta", "path"})


def el(name: str, /, *children: Child, **attributes: Child) -> Html:
    """An element.

    Args:
        name: of the element.
        children: markup as it is, anything else as escaped text; None is left out.
        attributes: `class_` is written `class`, other underscores are written as hyphens; None is left out.
    """
    head = name + "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{head} />")
    return Html(f"<{head}>{join(*children)}</{name}>")


def join(*children: Child) -> Html:
    """Several pieces side by side."""
    return Html("".join(c if isinstance(c, Html) else html.escape(str(c)) for c in children if c is not None))
