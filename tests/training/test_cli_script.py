"""The installed console script `metricseg`: exit status, and one line if the input is wrong."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning")
from metricseg.cli import raised_here
from metricseg.losses import build_loss

SCRIPT = Path(sys.executable).parent / "metricseg"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="metricseg is not installed")
QUICK = [
    "--config=scenes", "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.limit_val_batches=0",
    "--model.model.backbone=mobilenetv3_small_050", "--model.model.channels=16", "--data.dataset.length=4",
    "--data.dataset.size=32", "--data.crop=[32,32]", "--data.batch_size=2",
]  # fmt: skip


def script(folder, *arguments):
    return subprocess.run([SCRIPT, *arguments], cwd=folder, capture_output=True, text=True)


def run_script(folder, arguments, stderr):
    os.chdir(folder)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    sys.argv = [str(SCRIPT), *arguments]
    runpy.run_path(str(SCRIPT), run_name="__main__")


def forked_script(processes, folder, *arguments):
    """(exit status, stderr) of the script in a process that has imported this software."""
    (folder / "work").mkdir()
    process = processes.context.Process(target=run_script, args=(folder / "work", arguments, folder / "stderr"))
    process.start()
    process.join()
    return process.exitcode, (folder / "stderr").read_text()


def test_success_is_status_0(tmp_path, fresh_processes):
    done = script(tmp_path, "fit", *QUICK)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/scenes/checkpoints/last.ckpt").exists()
    assert forked_script(fresh_processes, tmp_path, "--help")[0] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--config=nosuch"], "no configuration is called 'nosuch'; there are ade20k, camvid, "),
        (["--model.model.name=nosuch"], "no model is called 'nosuch'; there are ccsnet, deeplabv3plus, dmlseg"),
        (["--nosuch=1"], "error: unrecognized arguments: --nosuch=1"),
    ],
)
def test_unknown_name_is_one_line(tmp_path, options, words, fresh_processes):
    status, stderr = forked_script(fresh_processes, tmp_path, "fit", *QUICK, *options)
    *_, last = stderr.splitlines()
    assert status in (1, 2) and words in last, stderr
    assert "Traceback" not in stderr and len(stderr.splitlines()) <= 3
    assert not list((tmp_path / "work").iterdir())


OWN = """
import torch
from torch import nn

class Noise:
    classes = ("ground", "sky")

    def __init__(self, split, length=4):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        labels = torch.randint(0, 2, (32, 32))
        return (labels * 200).to(torch.uint8).expand(3, -1, -1), labels

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 3)

    def forward(self, images):
        return self.conv(images)
"""


def test_class_paths_name_modules_of_the_current_directory(tmp_path):
    """A data set and a network of your own; the module `json` beside them hides none."""
    (tmp_path / "own_classes.py").write_text(OWN)
    (tmp_path / "json.py").write_text("raise RuntimeError('hidden')")
    config = (
        "{model: {model: {class_path: own_classes.Net}, loss: focal}, data: {dataset: {class_path: own_classes.Noise}}}"
    )
    (tmp_path / "own.yaml").write_text(config)
    options = [option for option in QUICK if not option.startswith(("--config", "--model", "--data.dataset"))]
    done = script(tmp_path, "fit", "--config=own.yaml", *options, "--data.dataset.init_args.length=6")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "checkpoints/last.ckpt").exists()


@pytest.mark.parametrize(
    ("module", "arguments"), [("lightning", ["--help"]), ("jsonargparse", ["fit", *QUICK])], ids=["help", "fit"]
)
def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch, module, arguments):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(f"import sys; sys.modules[{module!r}] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(hidden), prepend=":")
    done = script(tmp_path, *arguments)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith('pip install "metricseg[train]"')


def test_errors_of_libraries_keep_their_traceback():
    """A ValueError from elsewhere may be a fault of this project."""
    for call, ours in ((lambda: json.loads("{"), False), (lambda: build_loss("nosuch"), True)):
        with pytest.raises(ValueError) as caught:
            call()
        assert raised_here(caught.value) is ours
