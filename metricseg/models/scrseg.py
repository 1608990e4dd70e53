"""Semantic and contextual refinement: `SCRSeg`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from metricseg.layers import ContextualRefinement, SemanticRefinement
from metricseg.models.backbone import Backbone
from metricseg.models.base import MODELS, Segmenter
from metricseg.models.layers import conv_norm_act

OFFSETS = ("offsets_16", "offsets_8", "offsets_4")  # by the stride that a step ends at


@MODELS.register("scrseg")
class SCRSeg(Segmenter):
    """The system of Wang et al. 2024: a decoder that upsamples by semantic refinement, with the context of all stages.

        p_32 = conv1x1(s_32),  p_16 = SRM(p_32, s_16) + conv1x1(CRM(s_4, ..., s_32)),
        p_8 = SRM(p_16, s_8),  p_4 = SRM(p_8, s_4),  logits = conv1x1(p_4)

    with the stages s of a backbone at strides 4 to 32, SRM `metricseg.layers.SemanticRefinement` and CRM
    `metricseg.layers.ContextualRefinement`.

    Outputs: "logits" [B, K, H/4, W/4]; "auxiliary" [B, K, H/16, W/16], from p_16, for a loss in training.
    For pictures: "bilinear" [B, K, H/4, W/4], the logits with all offsets 0; "offsets_16", "offsets_8", "offsets_4"
    [B, 2, H/s, W/s], where the pixels of each SRM read, see `metricseg.layers.FlowAlign.displacement`.

    Written from the abstract of the paper; the layers say what is from it. Reconstructed here: where the context
    enters, and the auxiliary head. The abstract gives the light form 137.9 GFLOPs. Configuration
    `scrseg_cityscapes_light` has that work, on a backbone of our choice.

    Args:
        num_classes: K.
        backbone, pretrained, weights, backbone_options: see `Backbone`.
        channels: width of the decoder.
        context: channels of the context, a multiple of four; 0 for none.
        form: "affinity", or "gate", the light one; see `ContextualRefinement`.
        upsampling: "semantic"; or, to compare with it, "flow" or "bilinear"; see `SemanticRefinement`.
        hidden: channels that offsets are predicted from, see `FlowAlign`.
        align_corners: of all upsampling in the decoder.
        dropout: before the logits.

    Raises ValueError as the layers do, or if the backbone lacks one of the strides 4, 8, 16 and 32.

    Source: Wang et al., A Deep Semantic Segmentation Network with Semantic and Contextual Refinements, 2024,
    arXiv:2412.08671.
    """

    offers = ("logits", "auxiliary", "bilinear", *OFFSETS)

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        pretrained: bool = False,
        weights: str | Path | None = None,
        backbone_options: Mapping[str, Any] | None = None,
        channels: int = 128,
        context: int = 256,
        form: str = "affinity",
        upsampling: str = "semantic",
        hidden: int = 64,
        align_corners: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = Backbone(backbone, 32, pretrained, weights, backbone_options)
        widths = self.backbone.stage_channels  # of strides 4, 8, 16, 32
        self.context = None
        if context:
            refined = ContextualRefinement(widths, context, form=form)
            self.context = nn.Sequential(refined, nn.Conv2d(context, channels, 1, bias=False))
        self.deepest = conv_norm_act(widths[3], channels)
        self.steps = nn.ModuleList(
            SemanticRefinement(
                channels, width, channels, upsampling=upsampling, hidden=hidden, align_corners=align_corners
            )
            for width in widths[2::-1]
        )
        self.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, 1))
        self.auxiliary = nn.Conv2d(channels, num_classes, 1)

    def outputs(self, images: Tensor, names: Collection[str], labels: Tensor | None = None) -> dict[str, Tensor]:
        """[B, 3, H, W] -> the outputs asked for, see the class."""
        stages, found = self.backbone.stages(images), {}
        context = 0 if self.context is None else self.context(stages)
        if "bilinear" in names:
            found["bilinear"] = self.decode(stages, context, ("logits",), refine=False)["logits"]
        found |= self.decode(stages, context, set(names) - {"bilinear"})
        return {name: found[name] for name in names}

    def decode(
        self, stages: Sequence[Tensor], context: Tensor | int, names: Collection[str], refine: bool = True
    ) -> dict[str, Tensor]:
        """Those of the outputs that are in `names`, but for "bilinear"."""
        x, found = self.deepest(stages[3]), {}
        for name, step, fine in zip(OFFSETS, self.steps, stages[2::-1], strict=True):
            if name in names:
                found[name] = step.displacement(x, fine)
            x = step(x, fine, refine)
            if name == OFFSETS[0]:
                x = x + context
                if "auxiliary" in names:
                    found["auxiliary"] = self.auxiliary(x)
        if "logits" in names:
            found["logits"] = self.classifier(x)
        return found
