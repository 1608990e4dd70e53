"""Everything for one visit to a GPU machine, in under nine minutes: `make gpu`.

    python benchmarks/gpu.py [--out FOLDER] [--only PART ...] [--again]

Parts, in this order: build, tests, sanitizer, bench, train. Each has a time limit, and a failing part does not stop the
others. A part that passed leaves a stamp in FOLDER (benchmarks/results/gpu-visit) and is skipped next time, so that a
visit cut short goes on where it stopped; --again forgets the stamps. FOLDER gets a log per part, the results, and
summary.json (device, driver, versions; status and seconds per part).
The exit status is 0 if every part passed now or before, 2 if a part could not run here, and 1 if one failed.
Uses the Python that runs it, and what that Python has: nothing is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOTAL = 520  # seconds for all parts together
SANITIZER_PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/cuda/bin")


@dataclass(frozen=True)
class Visit:
    """Where the results go, and what the parts' commands see."""

    out: Path

    @property
    def environment(self) -> dict[str, str]:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        cache = {"TRITON_CACHE_DIR": str(self.out / "cache" / "triton")}
        return {**os.environ, **cache, "PYTHONPATH": os.pathsep.join(paths)}


@dataclass(frozen=True)
class Part:
    """`commands(visit)` yields (name, argument list, extra environment), or raises Missing."""

    name: str
    seconds: int
    commands: Callable[[Visit], Iterator[tuple[str, list[str], dict[str, str]]]]


class Missing(RuntimeError):
    """Why a part can't run here."""


def _has(*packages: str) -> None:
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        raise Missing(f"{sys.executable} has no {', '.join(absent)}")


def _device() -> None:
    _has("torch")
    import torch

    if not torch.cuda.is_available():
        raise Missing("torch sees no CUDA device")


def _tool(name: str) -> str:
    places = [os.environ.get("CUDA_HOME", "") + "/bin", *SANITIZER_PLACES]
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise Missing(f"no {name} on the PATH, nor in {', '.join(SANITIZER_PLACES)}")
    return found


def build(visit: Visit) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """The extension in place, with CUDA kernels or not at all."""
    _has("torch", "setuptools")
    _tool("nvcc")
    _device()
    yield "extension", [sys.executable, "setup.py", "build_ext", "--inplace"], {"METRICSEG_BUILD_CUDA": "1"}
    yield "report", [sys.executable, "-m", "metricseg_kernels"], {}


def tests(visit: Visit) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """What needs a device, and every test that takes a backend, on the device."""
    _has("pytest")
    _device()
    pytest = [sys.executable, "-m", "pytest", "tests", "-p", "no:cacheprovider", "--durations=5"]
    yield "gpu", [*pytest, "-m", "gpu", f"--junitxml={visit.out / 'tests-gpu.xml'}"], {}
    only_triton = ["-m", "not gpu", "-k", "triton and not interpret", f"--junitxml={visit.out / 'tests-triton.xml'}"]
    yield "triton", [*pytest, *only_triton], {}


def sanitizer(visit: Visit) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Our CUDA kernels under compute-sanitizer, on the small cases below; then Triton's under memcheck.

    Without torch's caching allocator every tensor is an allocation of its own, whose ends and whose
    uninitialised bytes the tools then know.
    """
    _device()
    tool = _tool("compute-sanitizer")
    small = [sys.executable, str(Path(__file__).resolve()), "--small-cases"]
    exits = ["--error-exitcode", "9", "--report-api-errors", "no"]
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for check in ("memcheck", "racecheck", "initcheck", "synccheck"):
        ours = ["--tool", check, "--kernel-name", "kns=metricseg"]  # the namespace, in the mangled name
        yield check, [tool, *exits, *ours, *small, "cuda"], uncached
    yield "memcheck-triton", [tool, *exits, *small, "triton"], uncached


def bench(visit: Visit) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    _has("pytest", "pytest_benchmark", "matplotlib")
    _device()
    raw = str(visit.out / "bench-raw.json")
    columns = ["--benchmark-columns=min,median,rounds", "--benchmark-sort=min", f"--benchmark-json={raw}"]
    yield "races", [sys.executable, "-m", "pytest", "benchmarks/", "--benchmark-only", *columns], {}
    yield "report", [sys.executable, "benchmarks/report.py", raw, "--out", str(visit.out)], {}


def train(visit: Visit) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    _has("lightning", "timm", "torchvision", "torchmetrics", "matplotlib")
    _device()
    yield "demo", [sys.executable, "-m", "metricseg.demo", "--out", str(visit.out / "demo")], {}
    if importlib.util.find_spec("jsonargparse") is not None:
        epoch = ["fit", "--config", "scenes", "--trainer.max_epochs", "1"]
        epoch += ["--trainer.default_root_dir", str(visit.out / "fit"), "--trainer.logger", "false"]
        yield "bf16-mixed", [sys.executable, "-c", "from metricseg.cli import main; main()", *epoch], {}


PARTS = (
    Part("build", 150, build),
    Part("tests", 150, tests),
    Part("sanitizer", 100, sanitizer),
    Part("bench", 260, bench),
    Part("train", 90, train),
)


def run_command(command: list[str], environment: dict[str, str], log: Any, seconds: float) -> str:
    """ "passed", "timed out after ..." or "failed with status ..."; ends the whole process group at its limit."""
    log.write(f"$ {' '.join(command)}\n")
    log.flush()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        status = process.wait(timeout=max(seconds, 1))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"timed out after {seconds:.0f} s"
    return "passed" if status == 0 else f"failed with status {status}"


def run_part(part: Part, visit: Visit, seconds: float) -> dict[str, Any]:
    """{"status", "seconds", and what each command came to}. Status: passed, failed, or missing."""
    start = time.monotonic()
    entry: dict[str, Any] = {"status": "passed", "commands": {}}
    with (visit.out / f"{part.name}.log").open("w") as log:
        try:
            for name, command, extra in part.commands(visit):
                left = seconds - (time.monotonic() - start)
                came_to = (
                    run_command(command, {**visit.environment, **extra}, log, left) if left > 1 else "no time left"
                )
                entry["commands"][name] = came_to
                if came_to != "passed":
                    entry["status"] = "failed"
        except Missing as reason:
            entry.update(status="missing", reason=str(reason))
            log.write(f"{reason}\n")
    entry["seconds"] = round(time.monotonic() - start, 1)
    return entry


def machine_record() -> dict[str, Any]:
    try:
        import machine
        import torch

        return machine.record("cuda" if torch.cuda.is_available() else "cpu")
    except ImportError as error:
        return {"error": str(error)}


def visit_all(out: Path, names: list[str], again: bool) -> int:
    out.mkdir(parents=True, exist_ok=True)
    visit, deadline = Visit(out), time.monotonic() + TOTAL
    stamp = {part.name: out / f".{part.name}.passed" for part in PARTS}
    summary_file = out / "summary.json"
    summary = json.loads(summary_file.read_text()) if summary_file.exists() else {"parts": {}}
    summary["machine"] = machine_record()
    chosen = [part for part in PARTS if part.name in names]
    for part in chosen:
        if again:
            stamp[part.name].unlink(missing_ok=True)
        if stamp[part.name].exists():
            print(f"{part.name:10} passed before")
            continue
        entry = run_part(part, visit, min(part.seconds, deadline - time.monotonic()))
        summary["parts"][part.name] = entry
        summary_file.write_text(json.dumps(summary, indent=1) + "\n")
        if entry["status"] == "passed":
            stamp[part.name].touch()
        reasons = [f"{name}: {came_to}" for name, came_to in entry["commands"].items() if came_to != "passed"]
        print(
            f"{part.name:10} {entry['status']} in {entry['seconds']} s", entry.get("reason", ""), *reasons, flush=True
        )
    print(f"results: {out}")
    statuses = {summary["parts"].get(part.name, {}).get("status") for part in chosen}
    return 1 if "failed" in statuses else 2 if "missing" in statuses else 0


def small_cases(backend: str) -> None:
    """Each kernel of a backend once or twice on small input."""
    from metricseg_kernels.core import backends

    focal_cases(backend)
    if backend in backends.ORDER["contrast"]["cuda"]:
        contrast_cases(backend)
    if backend in backends.ORDER["anchors"]["cuda"]:
        anchors_cases(backend)
    if backend in backends.ORDER["centers"]["cuda"]:
        centers_cases(backend)


def contrast_cases(backend: str) -> None:
    """A set with itself and two sets, no size a multiple of a tile, rows that take no part, ids, odd strides."""
    import torch

    import metricseg_kernels as mk

    for rows, columns, dim, dtype in ((150, None, 20, torch.float32), (131, 77, 64, torch.bfloat16)):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2 * rows, dim, generator=generator).to("cuda", dtype)[::2].requires_grad_()
        labels = torch.randint(-1, 4, (rows,), generator=generator).to("cuda")
        sets: list[Any] = [x, labels, None, None]
        ids: dict[str, Any] = {"anchor_ids": torch.arange(rows, device="cuda")}
        if columns is not None:
            y = torch.randn(columns, dim, generator=generator).to("cuda", dtype).requires_grad_()
            sets[2:] = y, torch.randint(-1, 4, (columns,), generator=generator).to("cuda")
            ids["contrast_ids"] = torch.arange(columns, device="cuda")
        losses = [
            mk.pixel_contrast_loss(*sets, backend=backend),
            mk.pixel_contrast_loss(*sets, denominator="all", reduction="none", backend=backend, **ids).mean(),
            mk.margin_contrast_loss(*sets, margin=9.0, backend=backend),
        ]
        sum(losses).backward()
        torch.cuda.synchronize()
        assert all(bool(loss.isfinite()) for loss in losses) and bool(x.grad.isfinite().all())
        print(f"{backend} contrast {rows} x {columns or rows} x {dim} {dtype}: done", flush=True)


def centers_cases(backend: str) -> None:
    """No size a multiple of a tile, shared centers and each image's own, labels out of range, odd strides."""
    import torch

    import metricseg_kernels as mk

    for channels, classes, own, dtype, layout in (
        (37, 19, False, torch.float32, torch.contiguous_format),
        (64, 150, True, torch.bfloat16, torch.channels_last),
        (5, 847, False, torch.float16, torch.contiguous_format),
    ):
        generator = torch.Generator().manual_seed(0)
        sizes = (2, channels, 11, 26), (2, classes, 11, 13), (*(2,) * own, classes, channels)
        x, z, w = (torch.randn(size, generator=generator).to("cuda", dtype) for size in sizes)
        x = x[..., ::2] if layout == torch.contiguous_format else x[..., :13].contiguous(memory_format=layout)
        x, z, w = (t.requires_grad_() for t in (x, z, w))
        labels = torch.randint(classes, (2, 11, 13), generator=generator).to("cuda", torch.int32)
        labels[:, 0, :3] = 255
        kwargs = {"num_classes": classes, "return_present": True, "backend": backend}
        logits, pull = mk.center_similarity(x, w, pull_labels=labels, backend=backend)
        far = mk.center_similarity(x, w, metric="euclidean", scale=0.1, backend=backend)
        (soft, _), (hard, present) = (mk.class_centers(x, a, **kwargs) for a in (z, labels))
        loss = sum(t.float().mean() for t in (logits, far, soft, hard)) + pull + mk.center_push(hard, present)
        loss.backward()
        torch.cuda.synchronize()
        assert all(bool(t.grad.isfinite().all()) for t in (x, z, w)) and bool(loss.isfinite())
        labels[0, 1, 1] = 2**30  # no class: the pull is NaN, and so are the centers of its image
        assert bool(mk.center_pull(x, w, labels, backend=backend).isnan())
        hard = mk.class_centers(x, labels, **kwargs)[0]
        torch.cuda.synchronize()
        assert bool(hard[0].isnan().all() and hard[1].isfinite().all())
        print(f"{backend} centers {channels} x {classes} {dtype}: done", flush=True)


def anchors_cases(backend: str) -> None:
    """Every strategy, more slots than samples, labels and indices out of range, a pixel twice, odd strides."""
    import torch

    import metricseg_kernels as mk

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (3, 19, 46), generator=generator).to("cuda")[..., ::2]
    labels[0, 0, :3], labels[1, 2, 3] = 255, 2**40
    predictions = torch.randint(5, labels.shape, generator=generator).to("cuda")
    confidence = torch.rand(labels.shape, generator=generator).to("cuda")
    for strategy, samples in (("hard", 200), ("random", 7), ("semi_hard", 200), ("boundary", 31)):
        kwargs = {"strategy": strategy, "max_samples": samples, "max_views": 20, "seed": 1, "backend": backend}
        index, sampled, count = mk.sample_anchors(labels, predictions, confidence=confidence, **kwargs)
        used = index[: int(count)]
        assert count > 0 and bool((labels.flatten()[used] == sampled[: int(count)]).all())
        for dtype, layout in ((torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)):
            x = torch.randn(3, 37, 19, 23, generator=generator).to("cuda", dtype, memory_format=layout).requires_grad_()
            pixels = torch.cat([index, index[:5], index.new_tensor([-1, -2, 2**50])])
            rows = mk.gather_pixels(x, pixels, backend=backend)
            rows.sum().backward()
            torch.cuda.synchronize()
            assert bool(rows[:-2].isfinite().all() and rows[-2:].isnan().all() and x.grad.isfinite().all())
        print(f"{backend} anchors {strategy}: done", flush=True)


def focal_cases(backend: str) -> None:
    """Up, down, none to interpolate, bad labels, odd strides."""
    import torch

    import metricseg_kernels as mk

    def pair(classes: int, cells: tuple[int, int], labels: tuple[int, int], dtype: torch.dtype) -> tuple[Any, Any]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, classes, *cells, generator=generator).to("cuda", dtype).requires_grad_()
        t = torch.randint(classes, (2, *labels), generator=generator)
        t[:, 0, :2] = 255
        return x, t.to("cuda", torch.uint8)

    for classes, cells, labels, dtype in (
        (19, (9, 13), (36, 52), torch.float32),
        (5, (8, 8), (31, 29), torch.bfloat16),
        (150, (12, 12), (12, 12), torch.float32),
        (3, (33, 17), (9, 8), torch.float16),
    ):
        x, t = pair(classes, cells, labels, dtype)
        weight = torch.linspace(0.5, 1.5, classes, device="cuda")
        losses = [
            mk.focal_loss(x, t, backend=backend),
            mk.cross_entropy(x, t, weight=weight, label_smoothing=0.1, align_corners=True, backend=backend),
            mk.focal_loss(x, t, reduction="none", return_stats=True, backend=backend)[0].mean(),
            mk.sigmoid_focal_loss(x, t, backend=backend),
            mk.ohem_cross_entropy(x, t, min_kept=20, backend=backend),
        ]
        sum(losses).backward()
        torch.cuda.synchronize()
        assert all(bool(loss.isfinite()) for loss in losses) and bool(x.grad.isfinite().all())
        t[0, 0, 5] = 200  # no class: the loss is NaN, and no address comes of it
        assert bool(mk.focal_loss(x, t, backend=backend).isnan())
        print(f"{backend} {tuple(x.shape)} to {tuple(labels)} {dtype}: done", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu-visit")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], default=[p.name for p in PARTS])
    parser.add_argument("--again", action="store_true", help="run parts that passed before as well")
    parser.add_argument("--small-cases", metavar="BACKEND", help="what the sanitizer part runs under compute-sanitizer")
    arguments = parser.parse_args()
    if arguments.small_cases:
        small_cases(arguments.small_cases)
        return 0
    return visit_all(arguments.out.resolve(), arguments.only, arguments.again)


if __name__ == "__main__":
    sys.exit(main())
