"""The documentation names files that exist, and links that lead somewhere."""

import re

import pytest
from places import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_named_files_exist(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]
    named = re.findall(r"`((?:metricseg|metricseg_kernels|csrc|tests|benchmarks)/[\w/.]+\.\w+)`", text)
    assert not [name for name in named if not (ROOT / name).exists()]
