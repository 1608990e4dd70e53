"""Training through Lightning: exact resume after a kill, checkpoints of other models, what evaluation reports."""

import functools
import os
import pickle
import signal

import pytest

pytest.importorskip("lightning")
import lightning as L
import torch

from metricseg.cli import main
from metricseg.data.module import SegmentationData
from metricseg.models import DMLSeg, WeightsMismatch
from metricseg.training.evaluation import BoundaryIoU, IoU
from metricseg.training.task import SegmentationTask, split_decay
from metricseg.visualization.embedding import EmbeddingPictures

MODEL = {"name": "deeplabv3plus", "backbone": "mobilenetv3_small_050", "channels": 16, "decoder_channels": 16}
DATA = {
    "dataset": {"name": "scenes", "length": 16, "size": 48},
    "crop": (32, 32),
    "batch_size": 4,
    "eval_batch_size": 8,
}


def task(**changes):
    torch.manual_seed(0)
    options = {"model": MODEL, "loss": {"name": "focal"}, "num_classes": 7, **changes}
    return SegmentationTask(**options)


def trainer(root, **options):
    return L.Trainer(
        default_root_dir=root, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, **options,
    )  # fmt: skip


class Kill(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(arguments):
    main(arguments, trainer_defaults={"callbacks": Kill()})


DMLSEG = [
    "--model.model.name=dmlseg",
    "--model.loss={name: terms, focal: {loss: focal}, auxiliary: {output: auxiliary, loss: cross_entropy}, "
    "contrast: {output: embedding, loss: {name: pixel_contrast, min_pixels: 1, max_views: 5, warmup_iters: 2}}}",
]

CCSNET = [
    "--model.model.name=ccsnet",
    "--model.loss={name: terms, ce: {loss: cross_entropy}, dice: {output: guidance, loss: dice}, "
    "push: {output: push}, pull: {output: pull, weight: 0.3}}",
]


def arguments(root):
    return [
        "fit", "--config", "scenes", f"--trainer.default_root_dir={root}", "--trainer.logger=false",
        "--trainer.precision=32-true", "--trainer.accelerator=cpu", "--trainer.max_epochs=4",
        "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
        "--trainer.num_sanity_val_steps=0", "--trainer.check_val_every_n_epoch=2",
        "--model.model.backbone=mobilenetv3_small_050", "--model.model.channels=16", "--model.warmup=3",
        "--data.dataset.length=16", "--data.dataset.size=48", "--data.crop=[32,32]", "--data.batch_size=4",
        "--embedding.pictures=0", "--centers.pictures=0",
    ]  # fmt: skip


WITHIN = ["--last.every_n_train_steps=1"]


@pytest.mark.parametrize(
    "system", [[], [*DMLSEG, *WITHIN], CCSNET], ids=["deeplabv3plus", "dmlseg within epochs", "ccsnet"]
)
def test_killed_run_resumes_to_the_same_bits(tmp_path, system, fresh_processes):
    """4 epochs at once, against SIGKILL in the third epoch and a resume: weights, optimizer and schedule are equal."""
    main([*arguments(tmp_path / "whole"), *system])
    killed = [*arguments(tmp_path / "killed"), *system]
    dying = fresh_processes.context.Process(target=train_until_killed, args=(killed,))
    dying.start()
    dying.join()
    assert dying.exitcode == -signal.SIGKILL
    last = tmp_path / "killed/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=False)["epoch"] == (2 if system[-1:] == WITHIN else 1)
    main([*killed, f"--ckpt_path={last}"])

    assert_same_bits(tmp_path / "whole/checkpoints/last.ckpt", last, 16)


def assert_same_bits(whole, resumed, steps):
    whole, resumed = (torch.load(path, weights_only=False) for path in (whole, resumed))
    assert whole["global_step"] == resumed["global_step"] == steps
    assert whole["lr_schedulers"] == resumed["lr_schedulers"]
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][key]), key
    for index, state in whole["optimizer_states"][0]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, resumed["optimizer_states"][0]["state"][index][key])


class Positions(L.Callback):
    """Each step's images; with a folder, a checkpoint of every step, of every validation's end and of every epoch's."""

    def __init__(self, folder=None):
        self.folder, self.images = folder, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.images[trainer.current_epoch, batch_idx] = batch[0].double().sum().item()

    def on_train_batch_end(self, trainer, *_):
        self.keep(trainer, "step")

    def on_validation_end(self, trainer, pl_module):
        self.keep(trainer, "validation")

    def on_train_epoch_end(self, trainer, pl_module):
        self.keep(trainer, "epoch")

    def keep(self, trainer, place):
        path = self.folder and self.folder / f"{place}{trainer.global_step}.ckpt"
        if path and not path.exists():  # a second step without an update: gradients aren't kept
            trainer.save_checkpoint(path)


@pytest.mark.parametrize(
    "options",
    [
        ["--data.workers=0", "--data.dataset.length=12", "--trainer.val_check_interval=2"],
        ["--data.workers=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=0"],
        ["--data.workers=0", "--trainer.accumulate_grad_batches=2"],
    ],
    ids=["validating", "workers", "accumulating"],
)
def test_resume_from_any_place_sees_each_sample_once(tmp_path, options):
    """The batches after it are those of a run without a stop, and so are the weights, to the bit."""
    options = ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1", *options]
    whole = Positions(tmp_path / "kept")
    main([*arguments(tmp_path / "whole"), *options], trainer_defaults={"callbacks": whole})
    accumulated = 2 if "--trainer.accumulate_grad_batches=2" in options else 1
    for place in sorted((tmp_path / "kept").glob("*[1-9].ckpt")):
        resumed, root = Positions(), tmp_path / place.stem
        main([*arguments(root), *options, f"--ckpt_path={place}"], trainer_defaults={"callbacks": resumed})
        done = torch.load(place, weights_only=False)["global_step"] * accumulated
        assert resumed.images == dict(list(whole.images.items())[done:]), place.name
        last = root / "checkpoints/last.ckpt"
        if last.exists():  # else there was nothing to do
            assert_same_bits(tmp_path / "whole/checkpoints/last.ckpt", last, len(whole.images) // accumulated)


def test_checkpoint_of_another_model_is_named(tmp_path):
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=1)
    data = SegmentationData(**DATA)
    run.fit(task(), data)
    run.save_checkpoint(tmp_path / "a.ckpt")
    other = task(model={**MODEL, "skip_channels": 24, "decoder_depth": 2})
    with pytest.raises(
        WeightsMismatch, match=r"(?s)another model: .*decoder\.1.*of another shape: .*model\.skip\.0\.weight"
    ):
        trainer(tmp_path).validate(other, data, ckpt_path=tmp_path / "a.ckpt", verbose=False)


def weighted(value, **changes):
    terms = {
        "name": "terms",
        "focal": {"loss": {"name": "focal", "class_weight": [value] * 7}},
        "dice": {"loss": {"name": "dice", "class_weight": [value] * 7}},
        "contrast": {"output": "embedding", "loss": {"name": "pixel_contrast", **changes}},
    }
    return task(model={**MODEL, "name": "dmlseg"}, loss=terms)


def test_class_weights_are_those_configured_not_those_of_the_checkpoint(tmp_path):
    """A checkpoint has none; an older one that has some, and no count of the contrast's forwards, loads as well."""
    run, data = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=1), SegmentationData(**DATA)
    run.fit(weighted(1.0), data)
    run.save_checkpoint(tmp_path / "new.ckpt")
    checkpoint = torch.load(tmp_path / "new.ckpt")
    assert not [k for k in checkpoint["state_dict"] if "class_weight" in k]
    del checkpoint["state_dict"]["loss.losses.contrast.iterations"]
    for name in ("focal", "dice"):
        checkpoint["state_dict"][f"loss.losses.{name}.class_weight"] = torch.ones(7)
    torch.save(checkpoint, tmp_path / "old.ckpt")
    for name in ("new", "old"):
        resumed = weighted(2.0)
        trainer(tmp_path, max_epochs=2, limit_train_batches=1, limit_val_batches=1).fit(
            resumed, data, ckpt_path=tmp_path / f"{name}.ckpt"
        )
        assert {float(w) for part in ("focal", "dice") for w in resumed.loss.losses[part].class_weight} == {2.0}
    with pytest.raises(WeightsMismatch, match=r"another loss: .*losses\.contrast\.memory\.bank"):
        other = weighted(1.0, with_memory=True, num_classes=7)
        trainer(tmp_path).validate(other, data, ckpt_path=tmp_path / "new.ckpt", verbose=False)


def test_validation_reports_mean_and_classes(tmp_path):
    data, module = (
        SegmentationData(**DATA),
        task(classes=SegmentationData(**DATA).classes, scales=(0.5, 1.0), flip=True, boundary=3),
    )
    (result,) = trainer(tmp_path).validate(module, data, verbose=False)
    expected, boundary = IoU(7), BoundaryIoU(7, 3)
    module.eval()
    with torch.no_grad():
        for images, labels in data.val_dataloader():
            predicted = module.predict_labels(images, (48, 48))
            expected.update(predicted, labels)
            boundary.update(predicted, labels)
    iou = expected.compute()
    assert result["val/miou_boundary"] == pytest.approx(float(boundary.compute().nanmean()))
    assert result["val/miou"] == pytest.approx(float(iou.nanmean()))
    assert result["val/iou/striped box"] == pytest.approx(float(iou[3]), nan_ok=True)


def test_batch_larger_than_the_data_is_refused(tmp_path):
    data = SegmentationData(**{**DATA, "batch_size": 32})
    with pytest.raises(ValueError, match="16 training pictures don't fill one batch of 32"):
        data.train_dataloader()


def test_only_matrices_decay():
    groups = [g for group in task().model.parameter_groups(1.0, 0.1) for g in split_decay(group, 0.5)]
    assert {p.ndim > 1 for g in groups if g["weight_decay"] for p in g["params"]} == {True}
    assert {p.ndim > 1 for g in groups if not g["weight_decay"] for p in g["params"]} == {False}
    assert sum(len(g["params"]) for g in groups) == len(list(task().model.parameters()))


def test_batch_of_one_with_batch_norm_is_refused(tmp_path):
    data = SegmentationData(**{**DATA, "batch_size": 1})
    assert len(data.train_dataloader()) == 16  # the network may have none
    with pytest.raises(ValueError, match="batch_size is 1; batch norm takes at least 2 training samples per process"):
        trainer(tmp_path, max_epochs=1).fit(task(), data)


def test_training_without_an_end_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs or trainer\.max_steps"):
        trainer(tmp_path, max_epochs=-1).fit(task(), SegmentationData(**DATA))
    run = trainer(tmp_path, max_epochs=-1, max_steps=5, limit_val_batches=0)
    run.fit(task(), SegmentationData(**DATA))
    assert run.global_step == 5 and run.optimizers[0].param_groups[0]["lr"] == 0


@pytest.mark.parametrize("system", ["dmlseg", "ccsnet"])
@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_half_precision_trains_and_draws(tmp_path, system, precision):
    options = DMLSEG if system == "dmlseg" else CCSNET
    changes = ["--trainer.max_epochs=1", f"--trainer.precision={precision}", "--trainer.check_val_every_n_epoch=1",
               "--embedding.pictures=4", "--centers.pictures=4"]  # fmt: skip
    cli = main([*arguments(tmp_path), *options, *changes])
    assert cli.trainer.global_step == 4 and bool(cli.trainer.logged_metrics["train/loss"].isfinite())
    assert all(bool(p.isfinite().all()) for p in cli.model.parameters())
    assert len(list(tmp_path.glob("*/epoch_001_*.png"))) == 2


@pytest.mark.parametrize("place", ["outputs", "draw"])
def test_pictures_never_end_a_training_run(tmp_path, monkeypatch, place):
    def fail(*_):
        raise RuntimeError("drawing failed")

    pictures, module = EmbeddingPictures(), task(model={**MODEL, "name": "dmlseg"})
    forward = functools.partial(DMLSeg.outputs, module.model, names=["logits"])
    monkeypatch.setattr(module.model, "forward", lambda images: forward(images)["logits"])
    monkeypatch.setattr(module.model if place == "outputs" else pictures, place, fail)
    run = trainer(tmp_path, max_epochs=2, limit_train_batches=1, limit_val_batches=1, callbacks=[pictures])
    with pytest.warns(UserWarning, match="EmbeddingPictures draws nothing this time: .*drawing failed"):
        run.fit(module, SegmentationData(**DATA))
    assert run.global_step == 2


def test_heads_without_a_loss_are_frozen():
    def trained(loss):
        module = task(model={**MODEL, "name": "dmlseg"}, loss=loss)
        return {name.split(".")[1] for name, p in module.named_parameters() if p.requires_grad}

    others = {"backbone", "aspp", "skip", "decoder", "classifier"}
    logits = {"loss": "focal"}
    auxiliary, embedding = {"output": "auxiliary", **logits}, {"output": "embedding", "loss": "margin_contrast"}
    assert trained({"name": "focal"}) == trained({"name": "terms", "a": logits}) == others
    assert trained({"name": "terms", "a": logits, "b": auxiliary}) == {*others, "auxiliary"}
    assert trained({"name": "terms", "a": logits, "b": embedding}) == {*others, "embedding"}
    with pytest.raises(ValueError, match="the loss has terms on auxiliary, embedding; it needs one on logits"):
        trained({"name": "terms", "a": auxiliary, "b": embedding})


def fit(arguments):
    main(arguments)


def test_two_spawned_processes_train_without_unused_heads(tmp_path, fresh_processes):
    """The task, the data and the callbacks are pickled; DistributedDataParallel needs a gradient of each parameter."""
    options = ["--trainer.strategy=ddp_spawn", "--trainer.devices=2", "--trainer.max_epochs=1", "--data.batch_size=2"]
    loss = ["--model.model.name=dmlseg", "--model.loss={name: terms, focal: {loss: focal}}"]
    fresh_processes.call(fit, [*arguments(tmp_path / "run"), *options, *loss], timeout=240)
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=False)["global_step"] == 4


@pytest.mark.parametrize("system", ["deeplabv3plus", "dmlseg", "ccsnet"])
def test_everything_can_be_pickled(tmp_path, system):
    """As a spawned process needs it, before and after training."""
    data, module = SegmentationData(**DATA, pictures=str(tmp_path)), task(model={**MODEL, "name": system})
    (tmp_path / "a.png").touch()
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=1)
    run.fit(module, data)
    loaders = [data.train_dataloader(), data.val_dataloader(), data.predict_dataloader()]
    schedule = run.lr_scheduler_configs[0].scheduler
    for part in (module, data, run.optimizers, schedule, *loaders, *run.callbacks):
        pickle.loads(pickle.dumps(part))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": -1.0}, "lr is -1.0; it takes a finite number >= 0"),
        ({"backbone_lr": float("nan")}, "backbone_lr is nan"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"power": float("inf")}, "power is inf"),
        ({"warmup": -1}, "warmup is -1"),
        ({"scales": ()}, r"scales is \(\); it takes at least one factor, finite and > 0"),
        ({"scales": (1.0, 0.0)}, r"scales is \(1.0, 0.0\)"),
        ({"classes": ("a", "b")}, "classes are 2 names; num_classes is 7"),
    ],
)
def test_task_names_bad_arguments(changes, words):
    with pytest.raises(ValueError, match=words):
        task(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 0}, "^batch_size is 0; it takes an integer >= 1"),
        ({"eval_batch_size": -1}, "^eval_batch_size is -1; it takes an integer >= 1"),
        ({"batch_size": 2.5}, "^batch_size is 2.5"),
        ({"workers": -1}, "^workers is -1; it takes an integer >= 0"),
        ({"dataset": {"name": "nosuch"}}, "no data set is called 'nosuch'; there are ade20k, bdd100k, camvid"),
        ({"dataset": {"root": "here"}}, "no data set is called None; there are ade20k, bdd100k, camvid"),
    ],
)
def test_data_names_bad_arguments(changes, words):
    with pytest.raises(ValueError, match=words):
        SegmentationData(**{**DATA, **changes})


def test_overfitting_a_few_batches_still_runs(tmp_path):
    """Lightning puts another sampler into the loader."""
    run = trainer(tmp_path, max_epochs=2, overfit_batches=2, limit_val_batches=0)
    run.fit(task(), SegmentationData(**DATA))
    assert run.global_step == 4
