"""SegSort through Lightning and the command line: validation by retrieval, and the bank as a file."""

import warnings

import pytest

pytest.importorskip("lightning")
import lightning as L
import torch

from metricseg.cli import main
from metricseg.models import read_bank
from metricseg.training import retrieval
from metricseg.training.task import SegmentationTask

QUICK = [
    "--config=segsort_scenes", "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.limit_val_batches=1",
    "--model.model.backbone=mobilenetv3_small_050", "--model.model.channels=16", "--model.model.decoder_channels=16",
    "--model.model.pictures=3", "--data.dataset.length=8", "--data.dataset.size=32", "--data.crop=[32,32]",
    "--data.batch_size=4", "--data.eval_batch_size=2", "--embedding.pictures=0",
]  # fmt: skip
MODEL = {"name": "segsort", "backbone": "mobilenetv3_small_050", "channels": 16, "decoder_channels": 16}
LOSS = {"name": "terms", "segsort": {"output": "embedding", "loss": "segsort"}}


class KeepFirst(L.Callback):
    """Keeps the checkpoint of the first epoch as first.ckpt."""

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/first.ckpt")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of two epochs."""
    folder = tmp_path_factory.mktemp("run")
    cli = main(["fit", *QUICK, f"--trainer.default_root_dir={folder}"], trainer_defaults={"callbacks": KeepFirst()})
    logged = cli.trainer.logged_metrics
    assert logged["train/loss"] == logged["train/segsort"] > 0 and 0 < logged["val/miou"] < 1
    return folder


def bank(run, out, *options):
    main(["bank", *QUICK, f"--ckpt_path={run}/checkpoints/last.ckpt", f"--out={out}", *options])
    return read_bank(out)


def test_checkpoint_holds_bank_and_memory(run):
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert state["model.bank.images"].unique().tolist() == [0, 1, 2]
    assert state["loss.losses.segsort.ring.pushed"] == 4
    assert (state["loss.losses.segsort.ring.labels"] >= 0).any(1).all()


def test_resumed_run_ends_with_the_same_bits(run, tmp_path):
    """Weights, memory and bank."""
    main(["fit", *QUICK, f"--trainer.default_root_dir={tmp_path}", f"--ckpt_path={run}/first.ckpt"])
    whole, resumed = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for folder in (run, tmp_path)
    )
    first = torch.load(run / "first.ckpt", weights_only=True)["state_dict"]
    assert whole.keys() == resumed.keys() and not torch.equal(
        first["loss.losses.segsort.ring.prototypes"], whole["loss.losses.segsort.ring.prototypes"]
    )
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_bank_file_serves_validation(run, tmp_path):
    out = tmp_path / "bank.safetensors"
    found = bank(run, out)
    assert found.names == tuple(f"train {k}" for k in range(8)) and "dotted box" in found.classes
    checkpoint = f"--ckpt_path={run}/checkpoints/last.ckpt"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*built with other weights")
        cli = main(["validate", *QUICK, checkpoint, f"--model.model.bank={out}", "--model.flip=true"])
    assert torch.equal(cli.model.model.bank.prototypes, found.rows.prototypes)
    with torch.no_grad():
        cli.model.model.embedding[1].bias += 1
    with pytest.warns(UserWarning, match=r"bank\.safetensors was built with other weights"):
        retrieval.check_weights(cli.model.model)
    before = out.read_bytes()
    with pytest.raises(FileExistsError, match=r"bank\.safetensors exists; --overwrite true replaces it"):
        bank(run, out)
    assert out.read_bytes() == before
    assert bank(run, out, "--overwrite=true", "--pictures=2").names == ("train 0", "train 4")


def test_interrupted_bank_goes_on(run, tmp_path, monkeypatch):
    """With the same weights and pictures; otherwise from the start."""
    whole = bank(run, tmp_path / "whole.safetensors")
    monkeypatch.setattr(retrieval, "EVERY", 2)
    rows_of_pictures, firsts = retrieval.rows_of_pictures, []

    def stopping(*arguments):
        firsts.append(arguments[-1])
        for done, rows in rows_of_pictures(*arguments):
            if len(firsts) == 1 and done > 4:
                raise KeyboardInterrupt
            yield done, rows

    monkeypatch.setattr(retrieval, "rows_of_pictures", stopping)
    out = tmp_path / "bank.safetensors"
    with pytest.raises(KeyboardInterrupt):
        bank(run, out)
    assert [path.name for path in tmp_path.glob("bank*")] == ["bank.safetensors.unfinished"]
    again = bank(run, out)
    assert [path.name for path in tmp_path.glob("bank*")] == ["bank.safetensors"]
    assert all(torch.equal(a, b) for a, b in zip(again.rows, whole.rows, strict=True)) and again.names == whole.names
    (tmp_path / "bank.safetensors.unfinished").write_bytes(out.read_bytes()[:100])
    bank(run, out, "--overwrite=true")
    assert firsts == [0, 4, 0]


def test_networks_that_can_not(run, tmp_path):
    options = ["--config=scenes", "--data.dataset.length=8", "--trainer.accelerator=cpu"]
    with pytest.raises(ValueError, match="bank needs --ckpt_path"):
        main(["bank", *options])
    with pytest.raises(ValueError, match="DeepLabV3Plus does not retrieve; bank takes a segsort model"):
        main(["bank", *options, f"--ckpt_path={run}/checkpoints/last.ckpt"])
    with pytest.raises(ValueError, match="the loss has terms on logits; it needs one on embedding"):
        SegmentationTask(MODEL, "focal", 7)


def test_bank_of_other_classes_is_refused(run, tmp_path):
    out = tmp_path / "bank.safetensors"
    bank(run, out, "--pictures=1")
    with pytest.raises(ValueError, match=r"bank\.safetensors has the classes ground, .*; the data set has a, b"):
        SegmentationTask({**MODEL, "bank": str(out)}, LOSS, 7, classes=list("abcdefg"))


def test_ddp_leaves_the_memory_of_each_rank_alone():
    ignored = SegmentationTask(MODEL, LOSS, 7)._ddp_params_and_buffers_to_ignore
    ring = [f"loss.losses.segsort.ring.{name}" for name in ("prototypes", "labels", "pushed")]
    assert ignored == [*ring, *(f"model.bank.{name}" for name in ("prototypes", "labels", "images"))]


def test_bank_needs_training_pictures():
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    samples = [(torch.zeros(3, 32, 32), torch.zeros(32, 32, dtype=torch.uint8))] * 2
    loader = torch.utils.data.DataLoader(samples, 2)
    with pytest.raises(ValueError, match="validates with a bank of training pictures: fit a SegmentationData"):
        trainer.fit(SegmentationTask(MODEL, LOSS, 7), loader, loader)
