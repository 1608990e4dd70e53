"""CamVid, one DeepLabv3+ with six classifiers: what class centers add, and what they cost.

    python -m benchmarks.camvid.centers --data DIR --weights FILE --work DIR                      # six epochs, seed 0
    python -m benchmarks.camvid.centers --data DIR --weights FILE --work DIR --epochs 20 --seeds 0 1 2 --device cuda
    python -m benchmarks.camvid.centers --data DIR --weights FILE --time-steps 12                 # step time, memory
    python -m benchmarks.camvid.centers --work DIR --report
    python -m benchmarks.camvid.centers --data DIR --weights FILE --work DIR --pictures              # of the centers

See `comparison.py`. All rows have cross-entropy on the logits, without class weights; they differ in the
classifier and in the losses of its centers.
"""

from __future__ import annotations

import argparse
from functools import partial

from metricseg.center_pictures import center_similarities, draw_maps, draw_matrices
from metricseg.data import CamVid

from .comparison import Comparison, Row, four_pictures, main, trained
from .recipe import prepare

CE = {"ce": {"loss": "cross_entropy"}}
GUIDED = {
    **CE,
    "guidance": {"output": "guidance", "weight": 0.4, "loss": "cross_entropy"},
    "dice": {"output": "guidance", "weight": 0.2, "loss": "dice"},
}
LOSSES = {"push": {"output": "push", "weight": 1.0}, "pull": {"output": "pull", "weight": 0.3}}
STATIC = {"name": "ccsnet", "centers": "static"}

CENTERS = Comparison(
    "camvid_centers",
    "classifier",
    "CamVid, DeepLabv3+ on EfficientNet-Lite0: one network, six classifiers",
    {
        "plain": Row("1 x 1 convolution", "#999999", {"name": "deeplabv3plus"}, CE),
        "static": Row("static centers", "#56b4e9", STATIC, CE),
        "static_losses": Row("static centers, push and pull", "#0072b2", STATIC, {**CE, **LOSSES}),
        "adaptive": Row("adaptive centers", "#e69f00", {"name": "ccsnet"}, GUIDED),
        "adaptive_losses": Row("adaptive centers, push and pull", "#d55e00", {"name": "ccsnet"}, {**GUIDED, **LOSSES}),
        "mlp_losses": Row(
            "adaptive centers by MLP, push and pull", "#009e73", {"name": "ccsnet", "adapter": "mlp"},
            {**GUIDED, **LOSSES},
        ),
    },
)  # fmt: skip


def pictures(args: argparse.Namespace) -> None:
    """`camvid_centers_matrix.png`: how alike the class centers of four validation pictures are, before training and
    after; `camvid_centers_maps.png`: two pictures' similarity to some of them, of the last row of `--rows`."""
    matrices, started = {}, []
    for name, row in ((name, CENTERS.rows[name]) for name in args.rows if name != "plain"):
        if row.model not in started:
            started.append(row.model)
            start = prepare(partial(CENTERS.system, args.weights, args.device, name), args.seeds[0], 1)[0]
            shown = four_pictures(start, args.data, ("logits", "centers"))
            matrices[f"{row.name.split(',')[0]}\nbefore training"] = center_similarities(shown)
        shown = four_pictures(trained(CENTERS, args, name), args.data, ("logits", "centers"))
        matrices[f"{row.name}\nafter training"] = center_similarities(shown)
    draw_matrices(matrices, CamVid.classes, args.out / "camvid_centers_matrix.png")
    draw_maps(shown[:2], CamVid.palette, CamVid.classes, args.out / "camvid_centers_maps.png")


if __name__ == "__main__":
    main(CENTERS, __doc__, pictures)
