"""Train one small network twice on generated scenes, with the eager focal loss and with this one, and compare them.

python -m metricseg.demo --out demo_out

Both runs have the same seed, weights and batches. Eager: logits upsampled by `F.interpolate`, then softmax focal
loss. metricseg: the same loss of the low-resolution logits, interpolated inside the kernel. Writes `panel.png`,
`curve.png` and `summary.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from metricseg.data import IGNORE, Scenes
from metricseg.demo import figures
from metricseg.losses import build_loss
from metricseg.models import Segmenter, build_model
from metricseg.training.evaluation import IoU, predict_views
from metricseg.utils.memory import peak_memory

Loss = Callable[[Tensor, Tensor], Tensor]
CITYSCAPES = (1, 19, 128, 256, 512, 1024)  # B, K, h, w, H, W
BATCH = 8


def eager_focal(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss without a kernel: upsample, cross-entropy, reweigh. Logits [B, K, h, w], labels [B, H,
    W]."""
    full = F.interpolate(logits, labels.shape[-2:], mode="bilinear")  # [B, K, H, W]
    ce = F.cross_entropy(full, labels.long(), ignore_index=IGNORE, reduction="none")
    return ((1 - torch.exp(-ce)) ** gamma * ce).sum() / (labels != IGNORE).sum()


@dataclass
class Result:
    """One run: the values of the table, the curve and the panel."""

    name: str
    losses: list[float] = field(default_factory=list)
    miou: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    loss_ms: float = 0.0
    loss_mb: float | None = None
    city_ms: float = 0.0
    city_mb: float | None = None


def pool(split: str, count: int, device: str) -> tuple[Tensor, Tensor]:
    """Generated scenes as float32 [N, 3, 128, 128] in [-1, 1] and labels uint8 [N, 128, 128]."""
    data = Scenes(split, count)
    samples = [data[k] for k in tqdm(range(count), desc=f"generate {split}", mininterval=1)]
    images = torch.stack([s[0].as_subclass(Tensor) for s in samples]).to(device).float() / 127.5 - 1
    return images, torch.stack([s[1].as_subclass(Tensor) for s in samples]).to(device)


def network(device: str) -> Segmenter:
    """A small DeepLabv3+, seeded."""
    torch.manual_seed(0)
    return build_model(
        {
            "name": "deeplabv3plus",
            "num_classes": len(Scenes.classes),
            "backbone": "resnet10t",
            "channels": 96,
            "decoder_channels": 96,
            "dropout": 0.0,
        }
    ).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.inference_mode()
def evaluate(model: Segmenter, images: Tensor, labels: Tensor) -> float:
    """Mean IoU in [0, 1]."""
    model.eval()
    iou = IoU(model.num_classes).to(images.device)
    for part, truth in zip(images.split(16), labels.split(16), strict=True):
        iou.update(predict_views(model, part), truth)
    model.train()
    return float(iou.compute().nanmean())


def train(
    name: str, loss: Loss, data: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], steps: int
) -> tuple[Result, Segmenter]:
    """One run of `steps` steps with AdamW and a one-cycle schedule."""
    result, model = Result(name), network(str(data[0].device))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.2)
    choose = torch.Generator().manual_seed(1)
    bar = tqdm(range(steps), desc=f"train, {name}", mininterval=1)
    for step in bar:
        picked = torch.randint(len(data[0]), (BATCH,), generator=choose).to(data[0].device)
        turns = int(torch.randint(4, (1,), generator=choose))
        images, labels = (part[picked].rot90(turns, (-2, -1)) for part in data)
        start = time.perf_counter()
        optimizer.zero_grad()
        value = loss(model(images.contiguous(memory_format=torch.channels_last)), labels.contiguous())
        value.backward()
        optimizer.step()
        schedule.step()
        result.losses.append(value.item())
        result.seconds += time.perf_counter() - start
        if (step + 1) % max(1, steps // 4) == 0:
            result.miou.append((step + 1, evaluate(model, *held_out)))
        bar.set_postfix(loss=f"{result.losses[-1]:.3f}", mIoU=f"{result.miou[-1][1]:.3f}" if result.miou else "-")
    return result, model


def loss_steps(losses: list[Loss], shape: tuple[int, ...], device: str) -> list[tuple[float, float | None]]:
    """(milliseconds, peak megabytes) of forward and backward of each loss at a shape (B, K, h, w, H, W).

    The losses take turns, so that other load on the machine slows all of them. Times are medians of 7.
    """
    b, k, h, w, full_h, full_w = shape
    logits = torch.randn(b, k, h, w, device=device, requires_grad=True)
    labels = torch.randint(k, (b, full_h, full_w), device=device, dtype=torch.uint8)

    def step(loss: Loss) -> None:
        logits.grad = None
        loss(logits, labels).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    peaks = []
    for loss in losses:
        step(loss)
        peaks.append(peak_memory(partial(step, loss), device))
    times: list[list[float]] = [[] for _ in losses]
    for _ in range(7):
        for spent, loss in zip(times, losses, strict=True):
            start = time.perf_counter()
            step(loss)
            spent.append(1e3 * (time.perf_counter() - start))
    return [(sorted(spent)[3], peak) for spent, peak in zip(times, peaks, strict=True)]


def table(results: list[Result]) -> str:
    """The comparison as text, the second run against the first."""
    first, second = results
    b, k, h, w, full_h, full_w = CITYSCAPES
    rows: list[tuple[str, float | None, float | None, str]] = [
        ("val mIoU", first.miou[-1][1], second.miou[-1][1], "{:.3f}"),
        ("training, s", first.seconds, second.seconds, "{:.1f}"),
        ("loss step here, ms", first.loss_ms, second.loss_ms, "{:.2f}"),
        ("loss step here, MB", first.loss_mb, second.loss_mb, "{:.1f}"),
        (f"loss step {b}x{k}x{h}x{w} to {full_h}x{full_w}, ms", first.city_ms, second.city_ms, "{:.1f}"),
        (f"loss step {b}x{k}x{h}x{w} to {full_h}x{full_w}, MB", first.city_mb, second.city_mb, "{:.1f}"),
    ]
    lines = [f"{'':44s}{first.name:>10s}{second.name:>10s}{'ratio':>8s}"]
    for label, a, c, form in rows:
        cells = [form.format(v) if v is not None else "-" for v in (a, c)]
        ratio = f"{a / c:.1f}x" if a and c and not label.startswith("val") else ""
        lines.append(f"{label:44s}{cells[0]:>10s}{cells[1]:>10s}{ratio:>8s}")
    return "\n".join(lines)


def main() -> None:
    """The demonstration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    parser.add_argument("--steps", type=int, default=240, help="training steps of each run")
    parser.add_argument("--pictures", type=int, default=480, help="generated training pictures")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args.out.mkdir(parents=True, exist_ok=True)

    losses: dict[str, Loss] = {"eager": eager_focal, "ours": build_loss({"name": "focal", "gamma": 2.0})}
    data, held_out = pool("train", args.pictures, device), pool("val", 64, device)
    here = (BATCH, len(Scenes.classes), 32, 32, 128, 128)
    results, models = [], []
    for name, loss in losses.items():
        result, model = train(name, loss, data, held_out, args.steps)
        results.append(result)
        models.append(model.eval())
    steps_here = loss_steps(list(losses.values()), here, device)
    steps_city = loss_steps(list(losses.values()), CITYSCAPES, device)
    for result, (ms, mb), (city_ms, city_mb) in zip(results, steps_here, steps_city, strict=True):
        result.loss_ms, result.loss_mb, result.city_ms, result.city_mb = ms, mb, city_ms, city_mb

    with torch.inference_mode():
        views = [predict_views(model, held_out[0][:6]) for model in models]
    height, width = held_out[1].shape[1:]
    shown = [each.labels((height, width)).cpu() for each in views]
    figures.panel(args.out / "panel.png", held_out[0][:6].cpu(), held_out[1][:6].cpu(), shown)
    figures.curve(args.out / "curve.png", results)
    (args.out / "summary.json").write_text(json.dumps([asdict(r) for r in results], indent=1))
    print(f"\n{device}, torch {torch.__version__}, {torch.get_num_threads()} threads\n\n{table(results)}\n")
    print(f"written to {args.out}: panel.png, curve.png, summary.json")


if __name__ == "__main__":
    main()
