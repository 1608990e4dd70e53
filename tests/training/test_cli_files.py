"""The files that the command line reads and writes: a run's folder, and the pictures of `predict`."""

import pytest

pytest.importorskip("lightning")
import numpy as np
from PIL import Image

from metricseg.cli import main

QUICK = [
    "--config=scenes", "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.limit_val_batches=1",
    "--model.model.backbone=mobilenetv3_small_050", "--model.model.channels=16", "--data.dataset.length=4",
    "--data.dataset.size=32", "--data.crop=[32,32]", "--data.batch_size=2", "--data.eval_batch_size=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of one epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        folder = tmp_path_factory.mktemp("run")
        main(["fit", *QUICK, f"--trainer.default_root_dir={folder}"])
    return folder


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder with a.jpg and b.png."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, shade in (("a.jpg", 50), ("b.png", 100)):
        save(folder / name, shade)
    return folder


def save(path, shade):
    Image.fromarray(np.full((24, 32, 3), shade, np.uint8)).save(path)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def predict(run, pictures, *options):
    main(["predict", *QUICK, f"--ckpt_path={run}/checkpoints/best.ckpt", f"--data.pictures={pictures}", *options])


def test_everything_of_a_run_is_in_its_folder(run):
    assert not list((run.parent / "elsewhere0").iterdir())
    names = {path.name.partition(".tfevents")[0] for path in run.rglob("*") if path.is_file()}
    assert names == {"last.ckpt", "best.ckpt", "config.yaml", "hparams.yaml", "events.out"}


def test_validate_and_predict_leave_the_run_alone(run, pictures, monkeypatch):
    before = contents(run)
    root = f"--trainer.default_root_dir={run}"
    main(["validate", *QUICK, root, f"--ckpt_path={run}/checkpoints/best.ckpt", "--model.flip=true"])
    predict(run, pictures, root)
    assert contents(run) == before


def test_new_fit_over_a_run_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, root = contents(run), f"--trainer.default_root_dir={run}"
    with pytest.raises(FileExistsError, match=r"holds the checkpoints of a run; --ckpt_path .*last\.ckpt resumes it"):
        main(["fit", *QUICK, root])
    with pytest.raises(
        FileExistsError, match="holds the checkpoints of a run"
    ):  # the checkpoint of one run, the folder of another
        (tmp_path / "other.ckpt").write_bytes(before["checkpoints/last.ckpt"])
        main(["fit", *QUICK, root, "--ckpt_path=other.ckpt"])
    with pytest.raises(FileExistsError, match="holds the checkpoints of a run"):
        main(["fit", *QUICK, "--trainer.default_root_dir=new", f"--best.dirpath={run}/checkpoints"])
    assert contents(run) == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--trainer.max_epochs=-1"], r"set trainer\.max_epochs or trainer\.max_steps"),
        (["--trainer.max_epochs=null", "--trainer.max_time=00:01:00:00"], r"set trainer\.max_epochs"),
        (["--data.batch_size=1"], "batch_size is 1; batch norm takes at least 2"),
        (["--data.batch_size=1", "--trainer.sync_batchnorm=true"], "batch_size is 1; batch norm takes at least 2"),
        (["--model.model=nosuch"], "no model is called 'nosuch'; there are ccsnet, deeplabv3plus, dmlseg"),
        (["--model.model.backbon=x"], r"'backbon'; its arguments are num_classes, backbone, output_stride"),
        (["--model.loss.gama=2"], "'gama'; its arguments are gamma, label_smoothing, .*backend"),
        (["--data.dataset=nosuch"], "no data set is called 'nosuch'; there are ade20k"),
        (["--data.dataset.lenght=2"], "'lenght'; its arguments are split, length, size, seed, objects"),
        (["--config=camvid", "--data.dataset.root=nowhere"], "nowhere/train is missing"),
    ],
)
def test_nothing_is_written_before_a_refusal(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        main(["fit", *QUICK, *options])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("checkpoint", ["last", "new/checkpoints/last.ckpt"])
def test_resume_goes_on_in_the_folder(tmp_path, monkeypatch, checkpoint):
    monkeypatch.chdir(tmp_path)
    root = "--trainer.default_root_dir=new"
    main(["fit", *QUICK, root])
    resumed = main(["fit", *QUICK, root, "--trainer.max_epochs=2", f"--ckpt_path={checkpoint}"])
    assert resumed.trainer.global_step == 4
    assert {path.name for path in (tmp_path / "new/checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}


@pytest.mark.parametrize("overwrite", ["true", "false"])
def test_predict_never_replaces_a_picture_that_it_reads(run, pictures, overwrite):
    before = contents(pictures)
    with pytest.raises(ValueError, match=r"b\.png is a picture to predict and would be replaced; set --writer\.folder"):
        predict(run, pictures, f"--writer.folder={pictures}", f"--writer.overwrite={overwrite}")
    assert contents(pictures) == before


def test_predict_never_replaces_a_picture_behind_a_link(run, pictures, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/b_overlay.jpg").hardlink_to(pictures / "a.jpg")
    before = contents(pictures)
    with pytest.raises(ValueError, match=r"b_overlay\.jpg is a picture to predict"):
        predict(run, pictures, "--writer.folder=out", "--writer.overwrite=true")
    assert contents(pictures) == before and len(list((tmp_path / "out").iterdir())) == 1


def test_predict_replaces_files_only_if_told_to(run, pictures, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "b_overlay.jpg").write_text("mine")
    with pytest.raises(FileExistsError, match=r"b_overlay\.jpg exists; --writer\.overwrite true replaces it"):
        predict(run, pictures, "--writer.folder=out")
    assert contents(out) == {"b_overlay.jpg": b"mine"}
    predict(run, pictures, "--writer.folder=out", "--writer.overwrite=true")
    assert set(contents(out)) == {"a.png", "a_overlay.jpg", "b.png", "b_overlay.jpg"}
    assert Image.open(out / "b_overlay.jpg").size == (32, 24)


def test_predict_into_a_file_is_refused(run, pictures, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match=r"--writer\.folder is out, a file"):
        predict(run, pictures, "--writer.folder=out")


def test_overlay_of_16_bits_is_scaled(run, pictures, tmp_path):
    """As what the network sees: it was clipped to white."""
    Image.fromarray(np.full((24, 32), 100 * 257, np.uint16)).save(pictures / "c.png")
    predict(run, pictures, "--writer.folder=out")
    b, c = (np.asarray(Image.open(tmp_path / f"out/{name}_overlay.jpg")).astype(int) for name in "bc")
    assert abs(b - c).max() <= 3


def test_pictures_of_one_stem_have_outputs_of_their_own(run, pictures, tmp_path):
    save(pictures / "a.png", 200)
    predict(run, pictures, "--writer.folder=out")
    names = {f"{name}{end}" for name in ("a.jpg", "a.png", "b") for end in (".png", "_overlay.jpg")}
    assert set(contents(tmp_path / "out")) == names
    shades = [np.asarray(Image.open(tmp_path / f"out/a.{kind}_overlay.jpg")).mean() for kind in ("jpg", "png")]
    assert shades[1] > shades[0] + 50
    save(pictures / "a.jpg.png", 0)
    with pytest.raises(ValueError, match=r"two pictures would be written to again/a\.jpg\.png"):
        predict(run, pictures, "--writer.folder=again")
    assert not (tmp_path / "again").exists()
