"""Every block of Python in the guide runs as it stands, and every link leads somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from habitus.envs.registry import names

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted((DOCS / "guide").glob("*.md"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """One cache for all pages, so that their data sets are made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_on_a_page_runs(page, tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HABITUS_CACHE", str(cache))
    text = page.read_text(encoding="utf-8")
    inside, lines = False, []
    for line in text.splitlines():  # other lines become blank, so that errors name lines of the page
        inside = line != "```" if inside else line == "```python"
        lines.append(line if inside and line != "```python" else "")
    script = tmp_path / f"{page.stem}.py"
    script.write_text("\n".join(lines), encoding="utf-8")
    runpy.run_path(str(script))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_built_in_world_is_named():
    text = (DOCS / "guide" / "env.md").read_text(encoding="utf-8")
    assert [name for name in names() if f"`{name}`" not in text] == []
