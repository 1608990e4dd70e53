"""The rows of the study: a network with its losses, and the row that it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.camvid.rows import CE, GUIDED, PUSH_PULL


@dataclass(frozen=True)
class StudyRow:
    """A network and the terms of its loss, its name, and the row that its difference is taken from; "" for none."""

    name: str
    model: dict[str, Any]
    terms: dict[str, Any]
    baseline: str = ""


# of the training labels: python -m metricseg.data.balance --dataset camvid --root DIR
WEIGHTS = [0.982, 0.811, 2.283, 0.668, 1.744, 1.302, 2.245, 2.254, 1.599, 2.356, 2.435]
FOCAL = {"focal": {"loss": {"name": "focal", "gamma": 2.0}}}
WEIGHTED = {"focal": {"loss": {"name": "focal", "gamma": 2.0, "class_weight": WEIGHTS}}}


def deeplab(name: str, **options: Any) -> dict[str, Any]:
    """A network on DeepLabv3+ of 128 channels."""
    return {"name": name, "output_stride": 32, "channels": 128, "decoder_channels": 128, **options}


def contrast(title: str, name: str, stride: int = 1, **options: Any) -> StudyRow:
    """Weighted focal loss and 0.1 times a contrast loss on an embedding of 64 channels."""
    term = {"output": "embedding", "weight": 0.1, "stride": stride, "loss": {"name": name, **options}}
    model = deeplab("dmlseg", embedding_channels=64)
    return StudyRow(f"weighted focal + {title}", model, {**WEIGHTED, "contrast": term}, "weighted_focal")


def centers(title: str, terms: dict[str, Any], **options: Any) -> StudyRow:
    """Similarity to class centers in the place of the last convolution."""
    return StudyRow(title, deeplab("ccsnet", **options), terms, "ce")


def decoder(title: str, baseline: str = "bilinear", **options: Any) -> StudyRow:
    """A decoder from stride 32 to 4, of 64 channels."""
    model = {"name": "scrseg", "channels": 64, "hidden": 32, "context": 0, **options}
    return StudyRow(title, model, CE, baseline)


PLAIN, ALL = deeplab("deeplabv3plus"), {"stride": 2, "temperature": 0.1, "sampling": "all"}
SEGSORT = {"segsort": {"output": "embedding", "loss": {"name": "segsort"}}}
ROWS = {
    "ce": StudyRow("cross-entropy", PLAIN, CE),
    "focal": StudyRow("focal", PLAIN, FOCAL, "ce"),
    "weighted_focal": StudyRow("weighted focal", PLAIN, WEIGHTED, "ce"),
    "margin": contrast("margin contrast, sampled", "margin_contrast", margin=1.0),
    "infonce": contrast("InfoNCE, sampled", "pixel_contrast", temperature=0.1),
    "infonce_all": contrast("InfoNCE, all pixels", "pixel_contrast", **ALL),
    "infonce_balanced": contrast("InfoNCE, all pixels, balanced", "pixel_contrast", **ALL, balance="classes"),
    "static": centers("static centers", CE, centers="static"),
    "static_losses": centers("static centers, push and pull", {**CE, **PUSH_PULL}, centers="static"),
    "adaptive": centers("adaptive centers", GUIDED),
    "adaptive_losses": centers("adaptive centers, push and pull", {**GUIDED, **PUSH_PULL}),
    "segsort": StudyRow("SegSort", deeplab("segsort", grid=(24, 32)), SEGSORT, "ce"),
    "bilinear": decoder("decoder: bilinear (FPN)", "", upsampling="bilinear"),
    "flow": decoder("decoder: flow (SFNet)", upsampling="flow"),
    "srm": decoder("decoder: SRM"),
    "srm_crm": decoder("decoder: SRM + CRM", context=128),
}
