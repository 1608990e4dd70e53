"""CamVid, one DMLSeg network trained with five losses: what a contrast loss adds, and what it costs.

    python -m benchmarks.camvid.losses --data DIR --weights FILE --work DIR                       # six epochs, seed 0
    python -m benchmarks.camvid.losses --data DIR --weights FILE --work DIR --epochs 20 --seeds 0 1 2 --device cuda
    python -m benchmarks.camvid.losses --data DIR --weights FILE --time-steps 12                  # step time, memory
    python -m benchmarks.camvid.losses --work DIR --report
    python -m benchmarks.camvid.losses --data DIR --weights FILE --work DIR --pictures               # of the embeddings

See `comparison.py`. All rows have 0.4 times cross-entropy on the encoder, and no class weights; they differ in
the loss on the logits and in the one on the embedding.
"""

from __future__ import annotations

import argparse
from typing import Any

from metricseg.data import CamVid
from metricseg.embedding_pictures import draw

from .comparison import Comparison, Row, four_pictures, main, trained

AUXILIARY = {"auxiliary": {"output": "auxiliary", "weight": 0.4, "loss": "cross_entropy"}}
FOCAL = {"focal": {"loss": {"name": "focal", "gamma": 2.0}}, **AUXILIARY}


def contrast(name: str, stride: int = 1, **options: Any) -> dict[str, Any]:
    """Focal loss beside 0.1 times a contrast loss on the embedding."""
    return {
        **FOCAL,
        "contrast": {"output": "embedding", "weight": 0.1, "stride": stride, "loss": {"name": name, **options}},
    }


def row(name: str, colour: str, terms: dict[str, Any]) -> Row:
    """A row of the one network."""
    return Row(name, colour, {"name": "dmlseg"}, terms)


LOSSES = Comparison(
    "camvid_losses",
    "loss",
    "CamVid, DMLSeg on EfficientNet-Lite0: one network, five losses",
    {
        "ce": row("cross-entropy", "#999999", {"ce": {"loss": "cross_entropy"}, **AUXILIARY}),
        "focal": row("focal", "#0072b2", FOCAL),
        "margin": row("focal + margin contrast, sampled", "#e69f00", contrast("margin_contrast", margin=1.0)),
        "infonce": row("focal + InfoNCE, sampled", "#cc79a7", contrast("pixel_contrast", temperature=0.1)),
        "infonce_all": row(
            "focal + InfoNCE, all pixels", "#009e73",
            contrast("pixel_contrast", stride=2, temperature=0.1, sampling="all"),
        ),
    },
)  # fmt: skip


def pictures(args: argparse.Namespace) -> None:
    """`camvid_losses_<row>_{map,scatter}.png`: the embedding of four validation pictures."""
    for name in args.rows:
        if any(term.get("output") == "embedding" for term in LOSSES.rows[name].terms.values()):
            shown = four_pictures(trained(LOSSES, args, name), args.data, ("embedding",))
            paths = (args.out / f"camvid_losses_{name}_{kind}.png" for kind in ("map", "scatter"))
            draw(shown, CamVid.palette, CamVid.classes, *paths)


if __name__ == "__main__":
    main(LOSSES, __doc__, pictures)
