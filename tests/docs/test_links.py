"""Every relative link of README and docs leads to a file and an existing heading, and
between the pages of the site.
"""

import re
from pathlib import Path

import pytest
import yaml

from tests.docs.shell import PAGES, ROOT, remove_blocks

LINK = re.compile(r"\]\(([^)\s]+)\)")


def find_anchors(markdown: str) -> set[str]:
    """The anchors of the headings, as forges and the site name them."""
    headings = re.findall(r"^#+ (.+)$", remove_blocks(markdown), re.MULTILINE)
    texts = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", text.strip().lower())) for text in texts}


def find_broken_links(page: Path, root: Path = ROOT) -> list[str]:
    """The relative links of a page that lead nowhere, or out of `root`."""
    text = page.read_text(encoding="utf-8")
    broken = []
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", remove_blocks(text))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        is_known = file.exists() and file.is_relative_to(root)
        if not is_known or (
            anchor and anchor not in find_anchors(file.read_text(encoding="utf-8"))
        ):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert find_broken_links(page) == []


def test_a_page_of_the_site_links_to_no_page_outside_of_it() -> None:
    docs = ROOT / "docs"
    outside = [
        (page.name, target)
        for page in docs.rglob("*.md")
        for target in find_broken_links(page, docs)
        if target.partition("#")[0].endswith(".md")
    ]
    assert outside == []


def test_a_link_to_a_missing_file_or_anchor_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Here\n[a](#here) [b](#there) [c](none.md) [d](https://x.org/none)\n")
    assert find_broken_links(page, tmp_path) == ["#there", "none.md"]


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = set(re.findall(r"[\w/-]+\.md", str(site["nav"])))
    assert pages == {
        path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")
    }
