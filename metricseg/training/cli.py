"""Lightning's command line, with this package's rules for the files of a run.

A run is a folder, `--trainer.default_root_dir`: `checkpoints/last.ckpt` and `best.ckpt`, `config.yaml`, TensorBoard's
logs and pictures. `fit` never starts anew over checkpoints; the other subcommands write neither logs nor configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from metricseg.cli import SUBCOMMANDS
from metricseg.data import build_dataset
from metricseg.data.module import SegmentationData
from metricseg.models import PrototypeBank, SegSort
from metricseg.training.checkpoints import WholeCheckpoints, check_whole
from metricseg.training.flops import count
from metricseg.training.retrieval import build, check_classes
from metricseg.training.task import ENDLESS, SegmentationTask
from metricseg.visualization.centers import CenterPictures
from metricseg.visualization.embedding import EmbeddingPictures
from metricseg.visualization.explain import explain
from metricseg.visualization.offsets import OffsetPictures
from metricseg.visualization.pictures import PredictionWriter


class FitConfig(SaveConfigCallback):
    """Write `config.yaml`, which made the weights, for `fit` alone, and say how an interrupted run goes on."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lightning's hook."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Lightning's hook."""
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            folders = [Path(callback.dirpath) for callback in trainer.checkpoint_callbacks if callback.dirpath]
            last = next((folder / "last.ckpt" for folder in folders if (folder / "last.ckpt").exists()), None)
            print(f"interrupted; --ckpt_path {last} goes on" if last else "interrupted before the first checkpoint")


class SegmentationTrainer(L.Trainer):
    """Lightning's Trainer, with `bank`, `explain` and `flops`, which run in one process."""

    def retrieving(self, command: str, model: SegmentationTask, ckpt_path: str | None) -> SegSort:
        """The network of the task, with the weights of a checkpoint, for evaluation, on its device; ValueError if it
        does not retrieve."""
        network = model.model
        if not isinstance(network, SegSort):
            raise ValueError(f"{type(network).__name__} does not retrieve; {command} takes a segsort model")
        if ckpt_path:
            checkpoint = self.strategy.checkpoint_io.load_checkpoint(ckpt_path, map_location="cpu", weights_only=True)
            model.on_load_checkpoint(checkpoint)
            model.load_state_dict(checkpoint["state_dict"])
        self.precision_plugin.convert_module(network).to(self.strategy.root_device).eval()
        return network

    def bank(
        self,
        model: SegmentationTask,
        datamodule: SegmentationData,
        ckpt_path: str | None = None,
        out: str = "bank.safetensors",
        overwrite: bool = False,
        pictures: int = 0,
    ) -> None:
        """Build the prototype bank of a network that retrieves, from the training set.

        If it is interrupted, the same call goes on from there.

        Args:
            model: the task.
            datamodule: the data.
            ckpt_path: a checkpoint of the run.
            out: the file to write.
            overwrite: replace a file that exists.
            pictures: of the training set, evenly spaced; 0 for all.
        """
        network = self.retrieving("bank", model, ckpt_path)
        found = build(network, self, datamodule, out, model.classes, pictures, overwrite)
        print(f"{out}: {len(found.rows.labels):,} prototypes of {len(found.names):,} pictures")

    def explain(
        self,
        model: SegmentationTask,
        datamodule: SegmentationData,
        bank: str,
        ckpt_path: str | None = None,
        out: str = "explanation",
        overwrite: bool = False,
        pictures: int | list[str] | str = 8,
    ) -> None:
        """Explain predictions: pages with each segment of validation pictures and the training segments that voted.

        If it is interrupted, the same call goes on from there.

        Args:
            model: the task.
            datamodule: the data.
            bank: a file that `metricseg bank` wrote, with the weights of the checkpoint.
            ckpt_path: a checkpoint of the run.
            out: the folder to write: new, empty, or with an explanation.
            overwrite: replace an explanation.
            pictures: number of validation pictures, evenly spaced, 0 for all; or names of some.
        """
        network = self.retrieving("explain", model, ckpt_path)
        network.bank.check_prototypes()
        network.bank = PrototypeBank(network.bank.dim, network.num_classes, bank).to(self.strategy.root_device)
        check_classes(network.bank, model.classes)
        folder = explain(network, self, datamodule, out, pictures, overwrite)
        print(f"{folder.path / 'index.html'}: {len(folder.done)} pictures")

    def flops(
        self, model: SegmentationTask, datamodule: SegmentationData, size: tuple[int, int] = (1024, 2048)
    ) -> None:
        """Print the multiply-adds of a prediction, and where they are; reads neither pictures nor weights.

        Args:
            model: the task.
            datamodule: the data.
            size: (height, width) of the picture.
        """
        found = count(model.model, size)
        print(
            f"{type(model.model).__name__} at {size[0]} x {size[1]}: {found.multiply_adds / 1e9:.1f} G multiply-adds "
            f"({2 * found.multiply_adds / 1e9:.1f} GFLOPs if each is two), {found.parameters / 1e6:.1f} M parameters"
        )
        for name, work in found.parts.items():
            print(f"{work / 1e9:10.1f} G  {name}")


class SegmentationCLI(LightningCLI):
    """Lightning's command line with six subcommands, one seed, and two kinds of checkpoint: the last epoch and the
    best."""

    def __init__(self, *parts: Any, named: Sequence[str], **options: Any) -> None:
        self._named = named
        super().__init__(*parts, **options)

    def subcommands(self) -> dict[str, set[str]]:
        """The Trainer methods that can be called, and which of their arguments the command line fills in itself."""
        filled = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
        return {name: filled for name in self._named}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The links between parts, and the callbacks that are always there."""
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.classes", "model.classes", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("seed_everything", "model.seed")
        parser.add_lightning_class_args(PredictionWriter, "writer")
        parser.add_lightning_class_args(EmbeddingPictures, "embedding")
        parser.add_lightning_class_args(CenterPictures, "centers")
        parser.add_lightning_class_args(OffsetPictures, "offsets")
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

    def _parse_ckpt_path(self) -> None:
        """Lightning's hook, which reads hyperparameters from the checkpoint: there are none."""

    def before_instantiate_classes(self) -> None:
        """Lightning's hook: raise if a checkpoint is needed, missing or damaged; fetch no weights to count flops."""
        network = self._get(self.config, "model").model
        if self.subcommand == "flops" and isinstance(network, dict) and "class_path" not in network:
            for option in ("pretrained", "weights"):
                network.pop(option, None)
        path = self._get(self.config, "ckpt_path")
        if self.subcommand in ("validate", "predict", "bank", "explain") and not path:
            raise ValueError(f"{self.subcommand} needs --ckpt_path: a checkpoint of a run, e.g. checkpoints/best.ckpt")
        if path and path not in ("last", "best", "hpc") and ":" not in path:  # nor a URL
            check_whole(Path(path))

    def instantiate_trainer(self, **options: Any) -> L.Trainer:
        """Lightning's hook: checkpoints that are whole; TensorBoard's logs in the run's folder for `fit`, and none
        otherwise, unless a logger is configured."""
        config = self._get(self.config_init, "trainer")
        plugins = config.plugins or []
        options["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), WholeCheckpoints()]
        if config.logger in (None, True):
            root = config.default_root_dir or "."
            options["logger"] = self.subcommand == "fit" and TensorBoardLogger(root, name=None, version="")
        return super().instantiate_trainer(**options)

    def before_fit(self) -> None:
        """Before any file is written, raise ValueError if training can't start or has no end, FileExistsError if `fit`
        would write over the checkpoints of a run that it does not resume, and the errors of the data set."""
        timed = any(isinstance(callback, Timer) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        epochs = -1 if self.trainer.max_epochs is None and timed else self.trainer.max_epochs  # as Lightning does
        if epochs == -1 and self.trainer.max_steps == -1:
            raise ValueError(ENDLESS)
        if not (self._get(self.config_init, "trainer").sync_batchnorm and self.trainer.world_size > 1):
            self.datamodule.check_batch_norm(self.model)
        data: Any = self.datamodule
        for split in (data.train_split, *([data.val_split] if self.trainer.limit_val_batches else [])):
            build_dataset(data.dataset, split)  # for its errors: a wrong argument, a missing folder
        resumed = self._get(self.config, "ckpt_path")
        for callback in [] if self.trainer.fast_dev_run else self.trainer.checkpoint_callbacks:
            folder = Path(callback.dirpath or Path(self.trainer.log_dir) / "checkpoints")
            held = sorted(folder.glob("*.ckpt"))
            if held and resumed != "last" and (resumed is None or Path(resumed).resolve().parent != folder.resolve()):
                raise FileExistsError(
                    f"{folder} holds the checkpoints of a run; --ckpt_path {held[-1]} resumes it, "
                    "--trainer.default_root_dir takes a new folder"
                )


def run(arguments: Sequence[str] | None, **options: Any) -> SegmentationCLI:
    """Run `arguments`, or, if None, those of the process; `options` are Lightning's."""
    given = sys.argv[1:] if arguments is None else arguments
    named = [name for name in given[:1] if name in SUBCOMMANDS] or SUBCOMMANDS  # all parsers take a second
    trainer_defaults = {"use_distributed_sampler": False, **options.pop("trainer_defaults", {})}  # see EpochSampler
    torch.set_float32_matmul_precision("high")
    return SegmentationCLI(
        SegmentationTask,
        SegmentationData,
        trainer_class=SegmentationTrainer,
        save_config_callback=FitConfig,
        seed_everything_default=0,
        trainer_defaults=trainer_defaults,
        auto_configure_optimizers=False,
        parser_kwargs={
            "description": "Train, evaluate and explain segmentation networks.",
            "epilog": "More subcommands, with --help of their own: doctor, bench, completion.",
            **{name: {"usage": f"metricseg {name} [options]"} for name in named},
        },
        named=named,
        save_config_kwargs={"overwrite": True},
        args=arguments,
        **options,
    )
