"""`metricseg doctor`, `bench` and `completion`, which need no extra."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import metricseg_kernels as mk
from metricseg import cli, doctor
from metricseg_kernels.core.registry import FAMILIES

SMALL = ["--classes", "3", "--logits", "8", "12", "--labels", "32", "48"]


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The console script's function in a process of its own, from this checkout."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", "from metricseg.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_doctor_tests_every_function() -> None:
    """Each public function is called by the test of its family, and a wrong backend is found."""
    assert doctor.TESTS.keys() == FAMILIES.keys()
    text = Path(doctor.__file__).read_text()
    apart = {"knn_vote", "center_pull", "center_push"}  # over functions that are tested
    functions = {n for n in mk.__all__ if n[0].islower()} - apart
    assert {n for n in functions if f"mk.{n}(" in text} == functions
    lines = list(doctor.run_tests())
    assert all(well for _, well in lines), lines
    assert {line.split()[1] for line, _ in lines} == FAMILIES.keys()


def test_doctor_tells_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from metricseg_kernels.focal import cpu

    kernel = cpu.focal_kernel

    def wrong(*arguments) -> None:
        kernel(*arguments)
        if (grad := arguments[-1]) is not None:
            grad.mul_(1.01)

    monkeypatch.setattr(cpu, "focal_kernel", wrong)
    assert doctor.main() == 1
    out = capsys.readouterr().out
    assert re.search(r"cpu +focal +cpu +result \d is off the reference by ", out)
    assert "1 of 11 failed" in out and "extension: loaded" in out and "segmentation-models-pytorch" in out


def test_bench_prints_a_row_for_each_loss() -> None:
    done = script("bench", *SMALL, "--device", "cpu", "--losses", "focal", "predict")
    assert done.returncode == 0, done.stderr
    assert "1x3x8x12 float32 to 32x48 on cpu" in done.stdout
    for name in ("focal", "predict"):
        assert re.search(rf"^{name} +[\d.]+ ms +[\d.-]+( MB)? +[\d.]+ ms +[\d.-]+( MB)? +[\d.]+x$", done.stdout, re.M)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--classes", "1"], "argument --classes: takes an integer >= 2, got 1"),
        (["--batch", "0"], "argument --batch: takes an integer >= 1, got 0"),
        (["--losses", "dice"], "invalid choice: 'dice'"),
        (["--device", "tpu"], "metricseg: --device is 'tpu'; it takes cpu or cuda"),
    ],
)
def test_bench_names_a_bad_option(arguments: list[str], words: str) -> None:
    done = script("bench", *arguments)
    assert done.returncode != 0 and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_bench_without_a_device() -> None:
    assert "--device is cuda; this machine has no CUDA device" in script("bench", "--device", "cuda").stderr


def test_help_is_quick() -> None:
    """It imports no torch."""
    start = time.perf_counter()
    done = script("bench", "--help")
    assert done.returncode == 0 and "--logits h w" in done.stdout
    loads = "import sys, metricseg.cli, metricseg.bench; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = subprocess.run([sys.executable, "-c", loads], capture_output=True, text=True, env=environment)
    assert found.stdout.strip() == "False"
    assert time.perf_counter() - start < 20
    assert script("doctor", "--help").stdout.startswith("usage: metricseg doctor")
    assert script("doctor", "--nosuch").returncode == 2


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["do"], ["doctor"]),
        (["fit", "--config", "cam"], ["camvid"]),
        (["bench", "--lo"], ["--logits", "--losses"]),
        (["completion", ""], ["bash", "zsh"]),
    ],
)
def test_completion(words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.completion(["bash"]) == 0
    text = capsys.readouterr().out
    listed = " ".join(f"'{w}'" for w in ("metricseg", *words))
    text += f'COMP_WORDS=({listed}); COMP_CWORD={len(words)}; _metricseg; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == expected, done.stderr
    assert cli.completion(["fish"]) == 2
