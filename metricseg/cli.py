"""`metricseg fit | validate | predict --config NAME_OR_FILE`: Lightning's command line over the task and the data of
this package.

`--config camvid` takes the YAML of that name that ships with the package (`metricseg/configs`); any option of it can be
set again behind it, e.g. `--data.dataset.root DIR`. `--ckpt_path runs/camvid/checkpoints/last.ckpt` resumes a run, or
says what to evaluate.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from metricseg.center_pictures import CenterPictures
from metricseg.data.module import SegmentationData
from metricseg.embedding_pictures import EmbeddingPictures
from metricseg.pictures import PredictionWriter
from metricseg.training import SegmentationTask


class SegmentationCLI(LightningCLI):
    """Lightning's command line with three subcommands, one seed, and two kinds of checkpoint: the last epoch and the
    best."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The Trainer methods that can be called, and which of their arguments the command line fills in itself."""
        filled = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
        return {name: filled for name in ("fit", "validate", "predict")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The links between parts, and the callbacks that are always there."""
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.classes", "model.classes", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("seed_everything", "model.seed")
        parser.add_lightning_class_args(PredictionWriter, "writer")
        parser.add_lightning_class_args(EmbeddingPictures, "embedding")
        parser.add_lightning_class_args(CenterPictures, "centers")
        parser.add_lightning_class_args(ModelCheckpoint, "last")
        parser.add_lightning_class_args(ModelCheckpoint, "best")
        parser.set_defaults(
            {
                "last.filename": "last",
                "last.save_on_train_epoch_end": True,
                "last.enable_version_counter": False,
                "best.filename": "best",
                "best.monitor": "val/miou",
                "best.mode": "max",
                "best.enable_version_counter": False,
            }
        )


def expand(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the bare name of a packaged configuration behind `--config` or `-c` replaced by its file."""
    packaged = {f.name.removesuffix(".yaml"): str(f) for f in files("metricseg").joinpath("configs").iterdir()}
    out: list[str] = []
    for argument in arguments:
        flag, _, value = argument.partition("=")
        if out and out[-1] in ("--config", "-c"):
            argument = packaged.get(argument, argument)
        elif flag == "--config" and value:
            argument = f"--config={packaged.get(value, value)}"
        out.append(argument)
    if out[:1] == ["predict"]:  # the writer has them; a large folder's maps need not stay in memory
        out.insert(1, "--return_predictions=false")
    return out


def main(arguments: Sequence[str] | None = None, **options: Any) -> SegmentationCLI:
    """The console script."""
    trainer_defaults = {"use_distributed_sampler": False, **options.pop("trainer_defaults", {})}  # see EpochSampler
    torch.set_float32_matmul_precision("high")
    if arguments is None:
        sys.argv[1:] = expand(sys.argv[1:])
    return SegmentationCLI(
        SegmentationTask,
        SegmentationData,
        seed_everything_default=0,
        trainer_defaults=trainer_defaults,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        args=None if arguments is None else expand(arguments),
        **options,
    )


if __name__ == "__main__":
    main()
