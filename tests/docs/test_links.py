"""Every link inside the repository leads somewhere, every page is linked, and none is half written."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest
from tests.docs.pages import DOCS, PAGES, README, REPOSITORY, anchors, links

NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_resolve(page: Path) -> None:
    broken = []
    for link in links(page):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / unquote(path)).resolve() if path else page
        if (
            not target.exists()
            or not target.is_relative_to(REPOSITORY)
            or (anchor and target.suffix == ".md" and anchor not in anchors(target))
        ):
            broken.append(link)
    assert broken == []


def test_every_page_is_reached_from_the_readme() -> None:
    seen, todo = set[Path](), [README]
    while todo:
        page = todo.pop()
        if page in seen:
            continue
        seen.add(page)
        targets = ((page.parent / link.partition("#")[0]).resolve() for link in links(page) if "://" not in link)
        todo += [target for target in targets if target.suffix == ".md" and target.exists()]
    assert set(DOCS.glob("**/*.md")) - seen == set()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_nothing_is_left_open(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for word in ("TODO", "FIXME", "XXX", "TBD", "lorem ipsum"):
        assert word not in text
