"""Hugging Face transformers, from 4.50 on: `Trainer(model=model, ..., compute_loss_func=hf_loss(criterion, model))`.

Most of its semantic segmentation models return small logits, and upsample them only for their own loss. UperNet
upsamples before, and models with an auxiliary head drop its logits after their loss. `low_resolution` returns all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from metricseg.integrations.low_resolution import WithAuxiliary, follow, need, skip_upsampling
from metricseg.losses import PixelLoss
from metricseg_kernels.core.labels import is_label, resolve_ignore_index

host = need("transformers", "transformers accelerate")
NOT_COUNTED = -100  # labels that Trainer leaves out of num_items_in_batch


@dataclass
class LowResolutionOutput(host.modeling_outputs.SemanticSegmenterOutput):
    """Output of a model in training: the host's output, and the auxiliary head's logits [B, K, h, w]."""

    auxiliary_logits: Tensor | None = None


def low_resolution(model: nn.Module, criterion: nn.Module | None = None) -> nn.Module:
    """Let a semantic segmentation model of transformers return, in training, small logits and its auxiliary logits.

    UperNet's logits are then those of its heads, before the upsampling. A model with an auxiliary head returns its
    output as `auxiliary_logits`. Other models, which return small logits anyway, and eval mode are unchanged. The model
    is changed in place.

    Args:
        model: a `...ForSemanticSegmentation`, not yet wrapped or compiled.
        criterion: the loss; its `align_corners` becomes the host's, False, which is also the default.

    Returns:
        `model`. In training it then takes no labels: its own loss would see no logits, so it raises ValueError.

    Raises TypeError for another model, or a criterion without a loss of metricseg on logits.
    """
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if not any(kind.endswith("ForSemanticSegmentation") for kind in kinds):
        raise TypeError(f"model is a {type(model).__name__}; it takes a ...ForSemanticSegmentation of transformers")
    if criterion is not None:
        follow(criterion, False)
    heads = {}
    if getattr(model, "auxiliary_head", None) is not None:
        heads["auxiliary_logits"] = model.auxiliary_head
    if "UperNetForSemanticSegmentation" in kinds:
        heads["logits"] = model.decode_head
    if heads:
        skip_upsampling(model, heads, replaced)
        model.register_forward_pre_hook(no_labels, with_kwargs=True)
    return model


def replaced(output: Any, kept: dict[str, Tensor]) -> LowResolutionOutput:
    if not isinstance(output, Mapping):
        raise TypeError("the model returns a tuple, which has no place for auxiliary logits; set return_dict=True")
    return LowResolutionOutput(**{**output, **kept})


def no_labels(model: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
    if model.training and options.get("labels") is not None:
        raise ValueError(
            f"labels are given to a {type(model).__name__} after low_resolution, which leaves its own loss without "
            "logits; call it without labels, and the loss with its output"
        )


class HFLoss(WithAuxiliary):
    """See `hf_loss`. `counts_valid`: whether num_items_in_batch leaves ignored pixels out, by `count_valid_pixels`."""

    counts_valid = False

    def forward(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        if labels is None:
            raise ValueError('labels is None; it takes label maps [B, H, W], the column "labels" of the data set')
        named = isinstance(outputs, Mapping)
        logits = outputs["logits"] if named else outputs[0]
        self.to(logits.device)  # class weights; Trainer does not move them
        loss = super().forward(logits, outputs.get("auxiliary_logits") if named else None, labels)
        if num_items_in_batch is None:
            return loss
        if self.counts_valid and torch.is_grad_enabled():  # in evaluation Trainer counts without get_batch_samples
            counted = ~self.ignored(labels, logits.shape[1])
        else:
            counted = labels != NOT_COUNTED
        items = torch.as_tensor(num_items_in_batch, dtype=loss.dtype, device=loss.device)
        return loss * (counted.sum(dtype=loss.dtype) / items.clamp(min=1))

    def ignored(self, labels: Tensor, classes: int) -> Tensor:
        """Mask of the labels that the criterion ignores."""
        first = next(module for module in self.criterion.modules() if isinstance(module, PixelLoss))
        return is_label(labels, resolve_ignore_index(first.ignore_index, classes))


def hf_loss(criterion: nn.Module, model: nn.Module | None = None, aux_weight: float | None = None) -> HFLoss:
    """A `compute_loss_func` for transformers' Trainer: criterion(logits) + aux_weight * criterion(auxiliary logits).

    With CrossEntropyLoss() this equals the loss that the model computes from the same labels. Of a batch of which
    Trainer counts n of N items (`num_items_in_batch`, over all batches of an accumulated step and over all processes)
    the result is n / N of the criterion's mean. So a step is the average of its batches, each by its items. Trainer
    counts labels other than -100, ignored ones of 255 too: `count_valid_pixels` makes the average that of one large
    batch.

    Args:
        criterion: a loss of metricseg on logits [B, K, h, w] and labels [B, H, W].
        model: the model that is trained; it goes through `low_resolution(model, criterion)`. None leaves it as it is:
            its auxiliary logits are then lost, and UperNet's are of label size.
        aux_weight: None for the `auxiliary_loss_weight` of the model's configuration, 0.4 without a model.

    Raises TypeError for a criterion that is no loss on logits, or a model that does no semantic segmentation.
    """
    follow(criterion, False)
    if model is not None:
        low_resolution(model)
    if aux_weight is None:
        aux_weight = getattr(getattr(model, "config", None), "auxiliary_loss_weight", 0.4)
    return HFLoss(criterion, aux_weight)


def count_valid_pixels(trainer: Any) -> None:
    """Make a Trainer with an `hf_loss` count only the pixels that the criterion does not ignore.

    Steps of gradient accumulation, and processes, then have the gradient of one large batch, to rounding, if the
    criterion's mean divides by the number of valid pixels: FocalLoss, SigmoidFocalLoss, and CrossEntropyLoss without
    class weights. It replaces `trainer.get_batch_samples` and `trainer.compute_loss_func`.

    Raises TypeError if the trainer has another `compute_loss_func`.
    """
    loss = getattr(trainer, "compute_loss_func", None)
    if not isinstance(loss, HFLoss):
        raise TypeError(
            f"trainer.compute_loss_func is {loss!r}; it takes a Trainer with compute_loss_func=hf_loss(...)"
        )
    count, classes = trainer.get_batch_samples, trainer.model.config.num_labels

    def get_batch_samples(batches: Iterator[dict[str, Any]], number: int, *device: Any) -> tuple[list, Any]:
        taken = list(islice(batches, number))
        marks = [{"labels": loss.ignored(batch["labels"], classes) * NOT_COUNTED} for batch in taken]
        return taken, count(iter(marks), len(marks), *device)[1]

    trainer.get_batch_samples, trainer.compute_loss_func = get_batch_samples, copy.copy(loss)
    trainer.compute_loss_func.counts_valid = True  # not of `loss`, which may serve a Trainer that counts otherwise
