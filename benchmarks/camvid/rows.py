"""Five comparisons on CamVid: tables whose rows are trained alike but for the network, the loss or the classifier.

All rows of a table see the same batches in the same order at the same rates (`recipe.py`) and start from the same
backbone weights. Rows of metricseg run in channels-last under bf16 autocast, without class weights. `softmax` of
"segsort" is `plain` of "centers": its curve may be copied instead of run again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .systems import System, metricseg_system, smp_system


@dataclass(frozen=True)
class Row:
    """A network and the terms of its loss, with the name and the color that it is shown in; without a network, smp.
    With `regions` it trains without labels, see `train_loader`."""

    name: str
    color: str
    model: dict[str, Any] = field(default_factory=dict)
    terms: dict[str, Any] = field(default_factory=dict)
    regions: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The rows of a table by a short name, what they are, the title of the plot, and the stem of the result files.

    `shares` names, for some rows, the row whose mIoU theirs is reported as a share of.
    """

    stem: str
    kind: str
    title: str
    epochs: int
    rows: dict[str, Row]
    shares: dict[str, str] = field(default_factory=dict)

    def system(self, weights: Path, device: str, row: str) -> System:
        """The network of `row` with its losses."""
        model, terms = self.rows[row].model, self.rows[row].terms
        return metricseg_system(model, terms, weights, device) if model else smp_system(weights, device)


def deeplab(name: str, **options: Any) -> dict[str, Any]:
    """A network on DeepLabv3+ with two separable convolutions in the decoder, against one in smp; ASPP rates 6, 12, 18
    against 12, 24, 36."""
    return {"name": name, "decoder_depth": 2, **options}


CE = {"ce": {"loss": "cross_entropy"}}
FOCAL = {"focal": {"loss": {"name": "focal", "gamma": 2.0}}}

NETWORKS = Comparison(
    "camvid",
    "network and loss",
    "CamVid, EfficientNet-Lite0, 320 x 320 crops, batch 8, same pictures in the same order",
    20,
    {
        "smp": Row("smp DeepLabV3Plus, eager cross-entropy, fp32", "#d55e00"),
        "metricseg": Row("metricseg, fused focal loss, bf16", "#0072b2", deeplab("deeplabv3plus"), FOCAL),
    },
)

AUXILIARY = {"auxiliary": {"output": "auxiliary", "weight": 0.4, "loss": "cross_entropy"}}


def contrast(name: str, stride: int = 1, **options: Any) -> dict[str, Any]:
    """Focal loss beside 0.1 times a contrast loss on the embedding."""
    term = {"output": "embedding", "weight": 0.1, "stride": stride, "loss": {"name": name, **options}}
    return {**FOCAL, **AUXILIARY, "contrast": term}


def dmlseg(name: str, color: str, terms: dict[str, Any]) -> Row:
    """A row of the one network."""
    return Row(name, color, deeplab("dmlseg"), terms)


ALL = contrast("pixel_contrast", stride=2, temperature=0.1, sampling="all")
LOSSES = Comparison(
    "camvid_losses",
    "loss",
    "CamVid, DMLSeg on EfficientNet-Lite0: one network, five losses",
    6,
    {
        "ce": dmlseg("cross-entropy", "#999999", {**CE, **AUXILIARY}),
        "focal": dmlseg("focal", "#0072b2", {**FOCAL, **AUXILIARY}),
        "margin": dmlseg("focal + margin contrast, sampled", "#e69f00", contrast("margin_contrast", margin=1.0)),
        "infonce": dmlseg("focal + InfoNCE, sampled", "#cc79a7", contrast("pixel_contrast", temperature=0.1)),
        "infonce_all": dmlseg("focal + InfoNCE, all pixels", "#009e73", ALL),
    },
)

GUIDED = {
    **CE,
    "guidance": {"output": "guidance", "weight": 0.4, "loss": "cross_entropy"},
    "dice": {"output": "guidance", "weight": 0.2, "loss": "dice"},
}
PUSH_PULL = {"push": {"output": "push", "weight": 1.0}, "pull": {"output": "pull", "weight": 0.3}}
STATIC, ADAPTIVE = deeplab("ccsnet", centers="static"), deeplab("ccsnet")
MLP = deeplab("ccsnet", adapter="mlp")

CENTERS = Comparison(
    "camvid_centers",
    "classifier",
    "CamVid, DeepLabv3+ on EfficientNet-Lite0: one network, six classifiers",
    6,
    {
        "plain": Row("1 x 1 convolution", "#999999", deeplab("deeplabv3plus"), CE),
        "static": Row("static centers", "#56b4e9", STATIC, CE),
        "static_losses": Row("static centers, push and pull", "#0072b2", STATIC, {**CE, **PUSH_PULL}),
        "adaptive": Row("adaptive centers", "#e69f00", ADAPTIVE, GUIDED),
        "adaptive_losses": Row("adaptive centers, push and pull", "#d55e00", ADAPTIVE, {**GUIDED, **PUSH_PULL}),
        "mlp_losses": Row("adaptive centers by MLP, push and pull", "#009e73", MLP, {**GUIDED, **PUSH_PULL}),
    },
)

RETRIEVAL = deeplab("segsort", grid=(24, 32))  # of prediction and the bank; the loss has its own


def segsort(name: str, color: str, loss: dict[str, Any], regions: dict[str, Any] | None = None) -> Row:
    """A row without a classifier."""
    return Row(name, color, RETRIEVAL, {"segsort": {"output": "embedding", "loss": loss}}, regions or {})


WITHOUT_LABELS = {"name": "segsort", "supervision": "segments", "memory": 0, "capacity": 3072}
SEGSORT = Comparison(
    "camvid_segsort",
    "system",
    "CamVid, DeepLabv3+ on EfficientNet-Lite0: a classifier, and segments by retrieval",
    6,
    {
        "softmax": Row("1 x 1 convolution, softmax", "#999999", deeplab("deeplabv3plus"), CE),
        "supervised": segsort("SegSort, supervised", "#0072b2", {"name": "segsort"}),
        "unsupervised": segsort("SegSort, unsupervised", "#d55e00", WITHOUT_LABELS, {"method": "felzenszwalb"}),
    },
    {"unsupervised": "supervised", "supervised": "softmax"},
)


def decoder(name: str, color: str, **options: Any) -> Row:
    """A row whose decoder goes from stride 32 to 4, without context unless asked for."""
    return Row(name, color, {"name": "scrseg", "context": 0, **options}, {**CE, **AUXILIARY})


DECODERS = Comparison(
    "camvid_decoders",
    "decoder",
    "CamVid, EfficientNet-Lite0 at stride 32: one decoder, three ways of upsampling, and context",
    6,
    {
        "bilinear": decoder("bilinear (FPN)", "#999999", upsampling="bilinear"),
        "flow": decoder("flow (SFNet)", "#e69f00", upsampling="flow"),
        "srm": decoder("SRM", "#0072b2", upsampling="semantic"),
        "srm_crm": decoder("SRM + CRM", "#d55e00", upsampling="semantic", context=256),
    },
)

COMPARISONS = {"networks": NETWORKS, "losses": LOSSES, "centers": CENTERS, "segsort": SEGSORT, "decoders": DECODERS}
