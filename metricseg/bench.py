"""`metricseg bench`: time and memory of the losses and of prediction at your shape, eager PyTorch against kernels.

Eager: F.interpolate of the logits to the size of the labels, then the loss. Both take turns; medians are shown. This
file imports torch only when it runs, so that --help is quick.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SECONDS = 2.0  # of turns for each row, or three turns if those take longer
LOSSES = ("cross_entropy", "focal", "ohem", "predict")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; exits with a message about a bad one."""
    parser = argparse.ArgumentParser(prog="metricseg bench", description=(__doc__ or "").partition("\n\n")[0])

    def positive(text: str) -> int:
        value = int(text)
        if value < 1:
            raise argparse.ArgumentTypeError(f"takes an integer >= 1, got {text}")
        return value

    size: dict[str, Any] = {"type": positive, "nargs": 2}
    parser.add_argument("--classes", type=positive, default=19, help="K, at least 2 (default: %(default)s)")
    parser.add_argument("--logits", **size, default=(128, 256), metavar=("h", "w"), help="what the network returns")
    parser.add_argument("--labels", **size, default=(512, 1024), metavar=("H", "W"), help="what the losses are at")
    parser.add_argument("--batch", type=positive, default=1, help="pictures (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", help="cpu or cuda; by default cuda if there is one")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES, metavar="NAME", help=", ".join(LOSSES))
    options = parser.parse_args(arguments)
    if options.classes < 2:
        parser.error(f"argument --classes: takes an integer >= 2, got {options.classes}")
    return options


def steps(name: str, logits: Tensor, labels: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """(eager, ours): forward and backward of a loss, or a prediction."""
    import torch
    import torch.nn.functional as F

    import metricseg_kernels as mk

    size = (labels.shape[1], labels.shape[2])

    def large() -> Tensor:
        return F.interpolate(logits, size, mode="bilinear")

    def cross_entropy() -> Tensor:
        return F.cross_entropy(large(), labels, ignore_index=255)

    def focal() -> Tensor:
        ce = F.cross_entropy(large(), labels, ignore_index=255, reduction="none")
        return ((1 - torch.exp(-ce)) ** 2 * ce).mean()

    def ohem() -> Tensor:
        losses = F.cross_entropy(large(), labels, ignore_index=255, reduction="none").flatten()
        hardest = losses.detach().sort(descending=True).values[min(kept, losses.numel() - 1)]
        return losses[losses > torch.minimum(hardest, losses.new_tensor(0.7).log().neg())].mean()

    kept = labels.numel() // 16
    if name == "predict":
        return torch.no_grad()(lambda: large().argmax(1)), lambda: mk.predict_labels(logits, size)
    eager, ours = {
        "cross_entropy": (cross_entropy, lambda: mk.cross_entropy(logits, labels)),
        "focal": (focal, lambda: mk.focal_loss(logits, labels, gamma=2.0)),
        "ohem": (ohem, lambda: mk.ohem_cross_entropy(logits, labels, thresh=0.7, min_kept=kept)),
    }[name]

    def step(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            logits.grad = None
            loss().backward()

        return run

    return step(eager), step(ours)


def measure(work: Sequence[Callable[[], None]], device: str) -> list[tuple[float, float | None] | str]:
    """For each: (median milliseconds, peak megabytes or None), or why there are none."""
    import torch

    from metricseg.utils.memory import peak_memory

    found: list[tuple[float, float | None] | str] = []
    peaks: list[float | None] = []
    for step in work:
        try:
            step()
            peaks.append(peak_memory(step, device))
            found.append("")
        except (torch.OutOfMemoryError, MemoryError):
            peaks.append(None)
            found.append("out of memory")
    times: list[list[float]] = [[] for _ in work]
    begin = time.perf_counter()
    while time.perf_counter() - begin < SECONDS or min(map(len, times)) < 3:
        for step, kept, failed in zip(work, times, found, strict=True):
            start = time.perf_counter()
            if not failed:
                step()
            if device == "cuda":
                torch.cuda.synchronize()
            kept.append(1e3 * (time.perf_counter() - start))
    return [f or (statistics.median(t), peak) for f, t, peak in zip(found, times, peaks, strict=True)]


def row(name: str, eager: tuple[float, float | None] | str, ours: tuple[float, float | None] | str) -> str:
    """A line of the table."""

    def text(found: tuple[float, float | None] | str) -> list[str]:
        if isinstance(found, str):
            return [found, "-"]
        return [f"{found[0]:.2f} ms", "-" if found[1] is None else f"{found[1]:.1f} MB"]

    cells = [name, *text(eager), *text(ours), ""]
    if not isinstance(eager, str) and not isinstance(ours, str):
        cells[-1] = f"{eager[0] / ours[0]:.1f}x"
    return "".join(f"{cell:<16}" for cell in cells).rstrip()


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a line for each loss as soon as it is known."""
    options = parse(arguments)
    print("metricseg bench: importing torch", file=sys.stderr, flush=True)
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda; this machine has no CUDA device that torch can use")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device is {device!r}; it takes cpu or cuda")
    torch.manual_seed(0)
    (h, w), (height, width) = options.logits, options.labels
    large = options.batch * options.classes * height * width * torch.finfo(getattr(torch, options.dtype)).bits // 8
    shape = f"{options.batch}x{options.classes}x{h}x{w} {options.dtype} to {height}x{width}"
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else f", {torch.cuda.get_device_name()}"
    print(f"{shape} on {device}{threads}; label-size logits would take {large / 1e6:,.0f} MB\n")
    print("".join(f"{c:<16}" for c in ("", "eager", "memory", "metricseg", "memory", "as fast")).rstrip(), flush=True)
    for name in options.losses:
        logits = torch.randn(options.batch, options.classes, h, w).to(device, getattr(torch, options.dtype))
        labels = torch.randint(options.classes, (options.batch, height, width), device=device)
        eager, ours = measure(steps(name, logits.requires_grad_(), labels), device)
        print(row(name, eager, ours), flush=True)
    print("\nLosses: forward and backward. Memory: the peak of one call beyond what was in use before.")
    return 0
