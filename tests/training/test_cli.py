"""The command line, from training to written pictures, and the configurations that ship with it."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning")
import torch
from PIL import Image

from metricseg.cli import expand, main
from metricseg.data import Scenes
from metricseg.models import SegSort
from metricseg.models.bank import BankRows
from metricseg.training.task import SegmentationTask

QUICK = [
    "--trainer.accelerator=cpu", "--trainer.precision=bf16-mixed", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false", "--model.model.backbone=mobilenetv3_small_050",
    "--model.model.channels=16", "--data.dataset.length=8", "--data.dataset.size=48", "--data.crop=[32,32]",
    "--data.batch_size=4",
]  # fmt: skip
CONFIGS = sorted(f.name.removesuffix(".yaml") for f in files("metricseg").joinpath("configs").iterdir())


def test_fit_validate_predict(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", "scenes", *QUICK, "--trainer.max_epochs=1"])
    run = tmp_path / "runs/scenes"
    assert (run / "checkpoints/last.ckpt").exists() and (run / "checkpoints/best.ckpt").exists()
    assert list(run.glob("events.out.tfevents*")) and (run / "config.yaml").exists()

    checkpoint = f"--ckpt_path={run}/checkpoints/best.ckpt"
    main(["validate", "--config=scenes", *QUICK, checkpoint, "--model.scales=[0.5,1.0]", "--model.flip=true"])
    assert "val/iou/dotted wedge" in capsys.readouterr().out

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    image = Scenes("val", 1, 64)[0][0].permute(1, 2, 0).numpy()[:40]
    Image.fromarray(image).save(pictures / "one.png")
    (pictures / "notes.txt").write_text("no picture")
    main(["predict", "--config=scenes", *QUICK, checkpoint, f"--data.pictures={pictures}", "--writer.folder=out"])
    labels = Image.open(tmp_path / "out/one.png")
    assert labels.mode == "P" and labels.size == (64, 40) and np.asarray(labels).max() < 7
    assert np.asarray(Image.open(tmp_path / "out/one_overlay.jpg")).shape == (40, 64, 3)


@pytest.mark.parametrize("epochs", [0, 1])
def test_an_interrupted_run_says_how_it_goes_on(epochs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    step = SegmentationTask.training_step

    def interrupted(self, *arguments):
        if self.current_epoch == epochs:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(SegmentationTask, "training_step", interrupted)
    with pytest.raises(SystemExit):
        main(["fit", "--config", "scenes", *QUICK, "--trainer.max_epochs=3"])
    last = Path("runs/scenes/checkpoints/last.ckpt")
    assert last.exists() == bool(epochs)
    said = f"interrupted; --ckpt_path {last} goes on" if epochs else "interrupted before the first checkpoint"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("name", CONFIGS)
def test_packaged_configurations_build(name):
    """Each parses and builds its network, loss and data module; no weights are fetched and no data are opened."""
    offline = ["--model.model.pretrained=false", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    offline += ["--data.dataset.classes=[road, sky]"] if name == "folders" else []
    cli = main(["--config", name, *offline, "--trainer.precision=32-true"], run=False)
    assert cli.model.iou.num_classes == cli.datamodule.num_classes
    assert len(cli.model.classes) == cli.datamodule.num_classes
    if isinstance(cli.model.model, SegSort):  # nothing to retrieve yet
        cli.model.model.bank.fill(BankRows(torch.ones(1, 32), torch.zeros(1).long(), torch.zeros(1).long()))
    with torch.no_grad():
        logits = cli.model.eval().model(torch.zeros(1, 3, 64, 64))
    assert logits.shape == (1, cli.datamodule.num_classes, 16, 16)


def test_predict_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ("predict", "validate"):
        with pytest.raises(ValueError, match=f"{command} needs --ckpt_path"):
            main([command, "--config", "scenes", *QUICK])
    main(["fit", "--config", "scenes", *QUICK, "--trainer.max_epochs=1", "--trainer.default_root_dir=run"])
    predict = ["predict", "--config", "scenes", *QUICK, "--ckpt_path=run/checkpoints/last.ckpt"]
    with pytest.raises(ValueError, match=r"--data\.pictures"):
        main(predict)
    with pytest.raises(FileNotFoundError, match="nowhere is missing"):
        main([*predict, f"--data.pictures={tmp_path}/nowhere"])


def test_your_own_folders_train_without_code(tmp_path, monkeypatch):
    """With a palette, an ignored value and a picture that can't be read."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        for k, (image, labels) in enumerate(Scenes(split, 4, 48)):
            for kind, values in (("images", image.permute(1, 2, 0)), ("labels", labels)):
                (path := tmp_path / f"mine/{kind}/{split}/{k}.png").parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.numpy()).save(path)
    options = [option for option in QUICK if "dataset" not in option and "channels" not in option]
    options = [
        "--config=folders",
        *options,
        "--data.dataset.root=mine",
        f"--data.dataset.classes={list(Scenes.classes)}",
    ]
    options += [f"--data.dataset.palette={[[k, k, k] for k in range(7)]}", "--data.dataset.on_error=skip"]
    options += ["--model.model.pretrained=false"]
    main(["fit", *options, "--trainer.max_epochs=1"])
    (tmp_path / "mine/images/val/1.png").write_bytes(b"no picture")
    checkpoint = "--ckpt_path=runs/folders/checkpoints/best.ckpt"
    with pytest.warns(UserWarning, match=r"skipped .*1\.png"):
        main(["predict", *options, checkpoint, "--data.pictures=mine/images/val", "--writer.folder=out"])
    assert {path.name for path in (tmp_path / "out").glob("[0-9].png")} == {"0.png", "2.png", "3.png"}
    assert Image.open(tmp_path / "out/0.png").getpalette()[:9] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_names_of_configurations_become_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    assert expand(["fit", "--config", "camvid", "--x", "camvid"])[2].endswith("configs/camvid.yaml")
    assert expand(["fit", "--config=voc"])[1].endswith("configs/voc.yaml")
    assert expand(["fit", "-c", "mine.yaml", "--x", "camvid"]) == ["fit", "-c", "mine.yaml", "--x", "camvid"]
