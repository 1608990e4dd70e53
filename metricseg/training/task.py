"""Training, evaluation and prediction as a Lightning module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from metricseg.data.stream import seeded
from metricseg.losses import Terms, build_loss
from metricseg.losses.prototype_memory import own_buffers
from metricseg.models import SegSort, WeightsMismatch, build_model, compare_weights
from metricseg.training.evaluation import BoundaryIoU, IoU, Views, check_scales, predict_views
from metricseg.training.retrieval import check_classes, check_weights, refill

ENDLESS = "the learning rate needs an end of training: set trainer.max_epochs or trainer.max_steps"


class SegmentationTask(L.LightningModule):
    """A network from `metricseg.models` trained with a loss from `metricseg.losses`.

    The loss gets the network's low-resolution logits and the full-resolution labels as they are; `Terms` gets the
    outputs that it needs, and each of its values is logged as train/<name>. AdamW, with its own rate for the backbone;
    both follow (1 - step / steps)^power after a linear warm-up, updated every step.

    A head of the network is a submodule with the name of an output. If that output is in no term of the loss, the head
    is frozen. A loss without a term on the logits, or what else the network predicts from, raises ValueError. So every
    parameter gets a gradient, which DistributedDataParallel needs.

    A network that retrieves (`SegSort`) gets a new bank before each validation of `fit`, from training pictures of
    `SegmentationData`. It is part of the checkpoint. `validate` and `predict` take that one, or a file. Each rank
    builds the bank from the same pictures, with its own batch norm statistics.

    Torch's generator is seeded anew for every step, so a run that was killed and resumed from its last checkpoint takes
    the same steps, to the bit, as one that was not.

    Args:
        model: name of the network, or its name and arguments; with `class_path` any `nn.Module`, see
            `metricseg.models.ModuleSegmenter`. The number of classes is added.
        loss: name of the loss, or its name and arguments.
        num_classes: K.
        classes: their names, for logging.
        lr, backbone_lr: peak learning rates of the head and of the backbone.
        weight_decay: of AdamW; none on biases and norms.
        power: of the schedule.
        warmup: steps of linear warm-up.
        channels_last: memory format of the network and its input.
        scales, flip: of evaluation and prediction, see `predict_views`.
        boundary: pixels; also log val/miou_boundary, the mIoU that near a label border, see `BoundaryIoU`. 0: not.
        seed: see above.

    Raises ValueError for an argument out of range, an unknown name, or a loss that doesn't fit the network.
    """

    def __init__(
        self,
        model: dict[str, Any] | str,
        loss: dict[str, Any] | str,
        num_classes: int,
        classes: Sequence[str] = (),
        lr: float = 1e-3,
        backbone_lr: float = 3e-4,
        weight_decay: float = 1e-2,
        power: float = 0.9,
        warmup: int = 0,
        channels_last: bool = True,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        boundary: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        rates = {"lr": lr, "backbone_lr": backbone_lr, "weight_decay": weight_decay, "power": power, "warmup": warmup}
        for name, value in rates.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; it takes a finite number >= 0")
        check_scales(scales)
        if classes and len(classes) != num_classes:
            raise ValueError(f"classes are {len(classes)} names; num_classes is {num_classes}")
        self.model = build_model(model, num_classes)
        self.loss = build_loss(loss)
        terms = isinstance(self.loss, Terms)
        if absent := (set(self.loss.needs) if terms else {"logits"}) - set(self.model.offers):
            raise ValueError(
                f"the loss needs {', '.join(sorted(absent))}; {type(self.model).__name__} offers "
                f"{', '.join(self.model.offers)}"
            )
        used = {output for output, _, _ in self.loss.plans.values()} if terms else {"logits"}
        if (needed := self.model.predicts_from) not in used:
            raise ValueError(f"the loss has terms on {', '.join(sorted(used))}; it needs one on {needed}")
        for name in set(self.model.offers) - used:
            if isinstance(head := getattr(self.model, name, None), nn.Module):
                head.requires_grad_(False)
        if isinstance(self.model, SegSort) and classes:
            check_classes(self.model.bank, classes)
        # prototypes of the last batches, and the bank: each rank has its own
        bank = [name for name, _ in self.named_buffers() if name.startswith("model.bank.")]
        self._ddp_params_and_buffers_to_ignore = [f"loss.{name}" for name in own_buffers(self.loss)]
        self._ddp_params_and_buffers_to_ignore += bank if isinstance(self.model, SegSort) else []
        self.classes = tuple(classes) or tuple(str(k) for k in range(num_classes))
        self.lr, self.backbone_lr, self.weight_decay = lr, backbone_lr, weight_decay
        self.power, self.warmup, self.seed = power, warmup, seed
        self.scales, self.flip = tuple(scales), flip
        self.iou = IoU(num_classes)
        self.boundary_iou = BoundaryIoU(num_classes, boundary) if boundary else None
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self.format)  # type: ignore[call-overload]

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Make the step's random numbers (dropout and the like) a function of (seed, epoch, step, rank)."""
        torch.manual_seed(seeded(self.seed, self.current_epoch, batch_idx, self.global_rank))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of images [B, 3, H, W] and labels [B, H, W]."""
        images, labels = batch
        images = images.contiguous(memory_format=self.format)
        if isinstance(self.loss, Terms):
            terms = self.loss(self.model.outputs(images, self.loss.needs, labels), labels)
            self.log_dict({f"train/{name}": value for name, value in terms.items()})
            loss: Tensor = torch.stack(list(terms.values())).sum()
        else:
            loss = self.loss(self.model(images), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def predict_views(self, images: Tensor) -> Views:
        """Logits of images [B, 3, H, W], at all scales."""
        images = images.contiguous(memory_format=self.format)
        return predict_views(self.model, images, self.scales, self.flip)

    def predict_labels(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Class indices [B, *size] of images [B, 3, H, W], in the smallest integer dtype from uint8 on."""
        return self.predict_views(images).labels(size)

    def on_validation_start(self) -> None:
        """Give a network that retrieves the bank to validate with, see the class."""
        if isinstance(self.model, SegSort) and self.trainer.state.fn == "fit":
            refill(self.model, self.trainer)
        elif isinstance(self.model, SegSort):
            check_weights(self.model)

    def on_predict_start(self) -> None:
        """Warn of a bank of other weights."""
        if isinstance(self.model, SegSort):
            check_weights(self.model)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the IoU, at the label maps' own size."""
        images, labels = batch
        views = self.predict_views(images)
        self.iou.update(views, labels)
        if self.boundary_iou is not None:
            self.boundary_iou.update(views, labels)

    def on_validation_epoch_end(self) -> None:
        """Log the mean and each class's IoU."""
        iou = self.iou.compute()
        self.iou.reset()
        self.log("val/miou", iou.nanmean().float(), prog_bar=True)
        if self.boundary_iou is not None:
            self.log("val/miou_boundary", self.boundary_iou.compute().nanmean().float(), prog_bar=True)
            self.boundary_iou.reset()
        self.log_dict({f"val/iou/{name}": value.float() for name, value in zip(self.classes, iou, strict=True)})

    def predict_step(
        self, batch: tuple[Tensor | None, tuple[int, int], str], batch_idx: int
    ) -> tuple[Tensor | None, str]:
        """A picture to (its label map [H, W] uint8 at its size on disk, its path); None for a picture that is None."""
        image, size, path = batch
        if image is None:
            return None, path
        return self.predict_labels(image[None], size)[0].to(torch.uint8), path

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise WeightsMismatch, naming the keys, if the checkpoint is of another network or loss. Class weights are
        not part of it: those configured now count. A bank may have any number of rows."""
        own, found = self.state_dict(), checkpoint["state_dict"]
        apart = ("loss.", "model.bank.") if isinstance(self.model, SegSort) else ("loss.",)
        network, others = ({k: v for k, v in d.items() if not k.startswith(apart)} for d in (own, found))
        compare_weights(network, others, "the checkpoint is of another model")
        try:
            self.loss.load_state_dict({k.removeprefix("loss."): v for k, v in found.items() if k.startswith("loss.")})
        except RuntimeError as error:
            raise WeightsMismatch(f"the checkpoint is of another loss: {' '.join(str(error).split())}") from error

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW and the poly schedule."""
        groups = [
            part
            for group in self.model.parameter_groups(self.lr, self.backbone_lr)
            for part in split_decay(group, self.weight_decay)
        ]
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(ENDLESS)
        optimizer = torch.optim.AdamW(groups)
        factor = partial(schedule_factor, steps=int(steps), warmup=self.warmup, power=self.power)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def schedule_factor(step: int, steps: int, warmup: int, power: float) -> float:
    """Factor of the learning rate at `step`: a function that can be pickled."""
    return min(1.0, (step + 1) / (warmup + 1)) * max(0.0, 1 - step / steps) ** power


def split_decay(group: dict[str, Any], weight_decay: float) -> list[dict[str, Any]]:
    """An optimizer group as two: matrices and kernels, which decay, and vectors (biases, norms), which don't."""
    decayed = [p for p in group["params"] if p.ndim > 1]
    others = [p for p in group["params"] if p.ndim <= 1]
    return [
        {**group, "params": decayed, "weight_decay": weight_decay},
        {**group, "params": others, "weight_decay": 0.0, "name": f"{group['name']} vectors"},
    ]
