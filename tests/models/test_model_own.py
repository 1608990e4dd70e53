"""Networks of your own: any `nn.Module` by its path, with logits or a mapping of outputs."""

import pytest

pytest.importorskip("lightning")
import lightning as L
import torch
from torch import nn

from metricseg.data.module import SegmentationData
from metricseg.models import DeepLabV3Plus, ModuleSegmenter, build_model
from metricseg.training.task import SegmentationTask

DATA = {"dataset": {"name": "scenes", "length": 8, "size": 48}, "crop": (32, 32), "batch_size": 4}
SMP = {
    "class_path": "segmentation_models_pytorch.Unet",
    "init_args": {"encoder_name": "resnet18", "encoder_weights": None},
}
FCN = {
    "class_path": "torchvision.models.segmentation.fcn_resnet50",
    "init_args": {"weights": None, "weights_backbone": None},
}


class Tiny(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, num_classes, 1)

    def forward(self, images):
        return self.head(self.body(images).relu())


class Wider(Tiny):
    """Takes `num_classes` through options that it passes on."""

    def __init__(self, **options):
        super().__init__(width=6, **options)


class Fixed(Tiny):
    """Knows its number of classes itself."""

    def __init__(self, found=None):
        super().__init__(5)
        self.found = found

    def forward(self, images):
        return super().forward(images) if self.found is None else self.found


def own(name, **options):
    return {"class_path": f"{__name__}.{name}", "init_args": options}


@pytest.mark.parametrize(
    "config", [own("Tiny"), own("Wider"), SMP, FCN], ids=["own", "passed on", "smp", "torchvision"]
)
def test_modules_from_elsewhere_train(tmp_path, config):
    """The number of classes is passed by whatever name the constructor has; every parameter learns."""
    pytest.importorskip(config["class_path"].partition(".")[0])
    torch.manual_seed(0)
    task = SegmentationTask(config, "focal", 7, warmup=0)
    before = {name: p.clone() for name, p in task.named_parameters()}
    trainer = L.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=1,
        enable_model_summary=False, num_sanity_val_steps=0, limit_train_batches=1, limit_val_batches=1,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(task, SegmentationData(**DATA))
    assert all(not torch.equal(p, before[name]) for name, p in task.named_parameters())
    assert 0 <= float(trainer.logged_metrics["val/miou"]) <= 1
    assert task.eval().predict_labels(torch.zeros(1, 3, 32, 32), (20, 30)).shape == (1, 20, 30)


@pytest.mark.parametrize(("config", "part"), [(own("Tiny"), None), (SMP, "encoder"), (FCN, "backbone")])
def test_backbone_has_its_own_learning_rate(config, part):
    pytest.importorskip(config["class_path"].partition(".")[0])
    model = build_model(config, 3)
    slow, fast = model.parameter_groups(1.0, 0.1)
    inner = list(getattr(model.module, part).parameters()) if part else []
    assert [id(p) for p in slow["params"]] == [id(p) for p in inner] and (slow["lr"], fast["lr"]) == (0.1, 1.0)
    assert len(slow["params"]) + len(fast["params"]) == len(list(model.parameters()))
    assert all(name.startswith("module.") for name in model.state_dict())


def test_number_of_classes():
    images = torch.zeros(2, 3, 8, 8)
    assert build_model(own("Fixed"), 5)(images).shape == (2, 5, 4, 4)
    assert build_model(own("Fixed"))(images).shape == (2, 5, 4, 4)
    assert build_model(own("Tiny", num_classes=3))(images).shape == (2, 3, 4, 4)
    with pytest.raises(ValueError, match="Fixed returns logits of 5 classes; the data set has 4"):
        build_model(own("Fixed"), 4)(images)


def test_outputs_that_are_no_logits():
    images, logits = torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 4, 4)
    for found in (logits, {"out": logits, "aux": logits[:, :2]}):
        assert torch.equal(ModuleSegmenter(Fixed(found), 5)(images), logits)
    for found, got in (
        ((logits,), "tuple"),
        ({"aux": logits}, "dict"),
        (logits[0], r"\[5, 4, 4\]"),
        (logits[:1], r"\[1, 5"),
    ):
        with pytest.raises(ValueError, match=f'Fixed returns {got}.* it takes logits .* as "out"'):
            ModuleSegmenter(Fixed(found), 5)(images)


def test_what_is_no_network():
    with pytest.raises(ValueError, match=r"model 'fractions\.Fraction' is a Fraction; it takes a torch\.nn\.Module"):
        build_model({"class_path": "fractions.Fraction"}, 3)
    with pytest.raises(ValueError, match="'widht'; its arguments are num_classes, width"):
        build_model(own("Tiny", widht=3), 3)
    with pytest.raises(ValueError, match="the loss needs embedding; ModuleSegmenter offers logits"):
        SegmentationTask(own("Tiny"), {"name": "terms", "a": {"output": "embedding", "loss": "margin_contrast"}}, 7)


def test_a_segmenter_is_taken_as_it_is():
    options = {"backbone": "mobilenetv3_small_050", "channels": 8, "decoder_channels": 8}
    model = build_model({"class_path": "metricseg.models.DeepLabV3Plus", "init_args": options}, 3)
    assert type(model) is DeepLabV3Plus and model.num_classes == 3
