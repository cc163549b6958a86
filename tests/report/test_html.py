"""What is not markup is escaped, wherever it stands."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from habitus.report.html import Html, el, join


class Reader(HTMLParser):
    """What a browser would make of some markup."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def read(markup: str) -> Reader:
    reader = Reader()
    reader.feed(markup)
    reader.close()
    return reader


# Parsers replace lone carriage returns and NUL, which no escape can carry.
text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)


@given(text, text)
def test_text_and_attributes_come_back_as_they_were(content, value):
    reader = read(el("p", content, title=value))
    assert reader.tags == [("p", {"title": value})]
    assert reader.text == content


def test_markup_stays_markup_and_names_are_written_as_html_has_them():
    inner = el("b", "x")
    assert (
        el("p", inner, None, 3, class_="a", aria_label="l", hidden=None) == '<p class="a" aria-label="l"><b>x</b>3</p>'
    )
    assert el("path", d="M0 0") == '<path d="M0 0" />'
    assert el("meta", name="viewport") == '<meta name="viewport" />'
    assert isinstance(join(inner, "<"), Html) and join(inner, "<") == "<b>x</b>&lt;"
