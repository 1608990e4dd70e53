"""The documentation: named files and links exist, and the Python blocks of a page run one after the other."""

import importlib.util
import re

import pytest
import torch
from places import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_named_files_exist(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]
    named = re.findall(r"`((?:metricseg|metricseg_kernels|csrc|tests|benchmarks|examples)/[\w/.]+\.\w+)`", text)
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda page: page.name
)
def test_python_blocks_run(page):
    torch.manual_seed(0)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        if "init_process_group" not in block and hosts_are_here(block):  # the former needs several processes
            exec(compile(block, page.name, "exec"), names)
    assert names["loss"].isfinite()


def hosts_are_here(block):
    """Whether the libraries whose adapters a block imports are installed."""
    hosts = re.findall(r"metricseg\.integrations\.(\w+)", block)
    return all(importlib.util.find_spec({"smp": "segmentation_models_pytorch"}.get(host, host)) for host in hosts)
