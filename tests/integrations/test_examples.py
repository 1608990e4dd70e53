"""The scripts in examples/: they run, the loss falls, and metricseg takes at most three lines beside its imports."""

import importlib.util
import json
import re

import pytest
from mmseg_site import need_mmseg
from places import ROOT

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
HOSTS = {
    "train_smp": "segmentation_models_pytorch", "train_torchvision": "torchvision", "train_transformers": "transformers",
    "train_lightning": "lightning", "train_mmseg": "mmseg",
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_loss_falls(script):
    if script.stem == "train_mmseg":
        need_mmseg()
    pytest.importorskip(HOSTS[script.stem], reason=f"{HOSTS[script.stem]} is not installed")
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    losses, score = module.main(steps=12)
    assert len(losses) == 12 and sum(losses[-3:]) < sum(losses[:3])
    assert 0 < score < 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_at_most_three_lines_beside_the_imports(script):
    """Every line that uses metricseg's losses or adapters carries the mark, and no other does."""
    lines = script.read_text().splitlines()
    imports = [line for line in lines if re.match(r"(from|import) metricseg\.(?!data)", line)]
    names = {
        name
        for line in imports
        if line.startswith("from")
        for name in re.findall(r"\w+", line.split("import")[1].split("#")[0])
    }
    using = [
        line
        for line in lines
        if line not in imports
        and (names & set(re.findall(r"\w+", line.split("#")[0])) or re.search(r'"metricseg\.\w+"', line))
    ]
    marked = [line for line in lines if line.endswith("  # metricseg")]
    assert set(imports) <= set(marked) and set(using) <= set(marked)
    assert 1 <= len(marked) - len(imports) <= 3 and 1 <= len(imports) <= 2


def test_the_notebook_runs():
    """Its code cells, one after the other, as in a kernel."""
    pytest.importorskip("torchvision")
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    cells = json.loads((ROOT / "examples/quickstart.ipynb").read_text())["cells"]
    assert [cell["outputs"] for cell in cells if cell["cell_type"] == "code"] == [[]] * 4
    names = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert sum(names["losses"][-5:]) < sum(names["losses"][:5]) and 0 < names["miou"] < 1
