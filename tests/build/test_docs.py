"""The documentation: files, links and anchors exist, every page is in the site, and Python blocks run in their order.

A block that can't run here opens with NOT_RUN and the reason, which the reader sees too.
"""

import importlib.util
import posixpath
import re

import pytest
import torch
from places import ROOT

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "RELEASING.md", *DOCS]
NOT_RUN = "# not run by the tests: "
BLOCKS_NOT_RUN = {"docs/distributed.md": 1, "docs/systems/segsort.md": 2}


def name(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def anchors(page):
    """Anchors that a link can name: the headings of the page, as GitHub and MyST write them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_files_exist(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)\s]+)", text) if "://" not in link]
    for path, _, anchor in (link.partition("#") for link in links):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"
    named = re.findall(r"`((?:metricseg|metricseg_kernels|csrc|tests|benchmarks|examples)/[\w/.]+\.\w+)`", text)
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name)
def test_python_blocks_run(page):
    torch.manual_seed(0)
    names = {}
    for block in blocks(page):
        if not block.startswith(NOT_RUN) and hosts_are_here(block):
            exec(compile(block, page.name, "exec"), names)
    assert "loss" not in names or names["loss"].isfinite()


def hosts_are_here(block):
    """Whether the libraries whose adapters a block imports are installed."""
    hosts = re.findall(r"metricseg\.integrations\.(\w+)", block)
    names = {"smp": "segmentation_models_pytorch", "pml": "pytorch_metric_learning"}
    return all(importlib.util.find_spec(names.get(host, host)) for host in hosts)


def test_few_python_blocks_are_not_run():
    found = {name(page): sum(block.startswith(NOT_RUN) for block in blocks(page)) for page in PAGES}
    assert {page: count for page, count in found.items() if count} == BLOCKS_NOT_RUN


def test_every_page_is_in_the_site():
    """In the toctree of a page, once, by its name or by a pattern."""
    listed = []
    for page in DOCS:
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
            for entry in (line for line in block.splitlines() if line and not line.startswith(":")):
                pattern = posixpath.normpath(posixpath.join(name(page.parent), entry)) + ".md"
                found = [name(path) for path in ROOT.glob(pattern)]
                assert found, f"{name(page)} lists {entry}, which matches no page"
                listed += found
    pages = {*map(name, DOCS), "CONTRIBUTING.md", "CHANGELOG.md", "RELEASING.md"} - {"docs/index.md"}
    assert sorted(path for path in listed if not path.startswith("benchmarks/")) == sorted(pages)


def test_the_table_of_the_readme_is_measured(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(ROOT / "docs")
    from extensions.measured import summary_table

    table = summary_table()
    assert table in (ROOT / "README.md").read_text(), f"README.md lacks the table of benchmarks/results/cpu:\n{table}"


@pytest.mark.parametrize("family", [page.stem for page in DOCS if page.parent.name == "families"])
def test_pictures_are_deterministic(family, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(ROOT / "docs")
    import pictures

    drawn, caption = pictures.svg(family)
    assert drawn.startswith(b"<?xml") and caption
    assert drawn == pictures.svg(family)[0]
