"""The network: shapes, strides, weights from files, and what it says when they don't fit."""

import pytest

pytest.importorskip("timm")
import timm
import torch
from safetensors.torch import save_file

from metricseg.losses import build_loss
from metricseg.models import DeepLabV3Plus, WeightsMismatch, build_model
from metricseg.training.evaluation import IoU, predict_probabilities, predict_views

SMALL = {"num_classes": 4, "backbone": "mobilenetv3_small_050", "channels": 16, "decoder_channels": 16}


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_logits_at_stride_four_and_prediction_at_picture_size(stride):
    model = DeepLabV3Plus(**SMALL, output_stride=stride).eval()
    images = torch.randn(2, 3, 90, 70)
    with torch.no_grad():
        assert model(images).shape == (2, 4, 23, 18)
        assert model.predict(images).shape == (2, 4, 90, 70)
        assert model.predict(images, (31, 17)).shape == (2, 4, 31, 17)
        deep = model.backbone(images)[1]
    assert deep.shape[-2:] == (-(-90 // stride), -(-70 // stride))


@pytest.mark.parametrize("backbone", ["resnet10t", "convnext_atto", "tf_efficientnet_lite0"])
def test_other_backbones(backbone):
    model = DeepLabV3Plus(3, backbone, channels=8, decoder_channels=8).eval()
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("backbone", "options"),
    [("mambaout_femto", {}), ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)})],
)
def test_backbones_with_channels_last_features(backbone, options):
    model = DeepLabV3Plus(3, backbone, 32, backbone_options=options, channels=8, decoder_channels=8).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 70, 91)).shape == (1, 3, 18, 23)
        shallow, deep = model.backbone(images := torch.randn(1, 3, 64, 96))
        assert shallow.shape == (1, model.backbone.shallow_channels, 16, 24)
        assert deep.shape == (1, model.backbone.deep_channels, 2, 3)
        assert torch.equal(deep[0, :, 1, 2], model.backbone.body(images)[-1][0, 1, 2])
        assert model(images).shape == (1, 3, 16, 24)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backbone": "vit_tiny_patch16_224"}, "vit_tiny_patch16_224"),
        ({"backbone": "no_such_network"}, "no_such_network"),
        ({"backbone": "resnet10t", "output_stride": 4}, "8, 16 or 32"),
    ],
)
def test_backbone_that_can_not_serve(options, words):
    with pytest.raises(ValueError, match=words):
        DeepLabV3Plus(3, **options)


def saved(path, change=lambda state: None):
    torch.manual_seed(1)
    state = timm.create_model(SMALL["backbone"]).state_dict()
    change(state)
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return state


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("classifier", [True, False])
def test_local_weights(tmp_path, suffix, classifier):
    path = tmp_path / f"weights{suffix}"
    drop = (lambda s: None) if classifier else (lambda s: [s.pop(f"classifier.{k}") for k in ("weight", "bias")])
    state = saved(path, drop)
    loaded = DeepLabV3Plus(**SMALL, weights=path).backbone.body.state_dict()
    assert all(torch.equal(loaded[k], state[k]) for k in loaded)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("conv_stem.weight"), "1 missing: conv_stem.weight"),
        (lambda s: s.update({"neck.bias": torch.zeros(2)}), "1 unexpected: neck.bias"),
        (lambda s: s.update({"bn1.bias": torch.zeros(5)}), r"1 of another shape: bn1.bias \(5,\) instead of \(16,\)"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, change, words):
    path = tmp_path / "weights.safetensors"
    saved(path, change)
    with pytest.raises(WeightsMismatch, match=words):
        DeepLabV3Plus(**SMALL, weights=path)


def test_weights_file_missing_or_unreadable(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth is missing"):
        DeepLabV3Plus(**SMALL, weights=tmp_path / "nothing.pth")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(WeightsMismatch, match="no readable"):
        DeepLabV3Plus(**SMALL, weights=tmp_path / "junk.safetensors")


def test_weights_that_cannot_be_fetched(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(ValueError, match=r"weights of 'resnet18' can't be fetched \(a file .*\): no route to the hub"):
        build_model({"name": "deeplabv3plus", "backbone": "resnet18", "pretrained": True, "num_classes": 3})


def test_parameter_groups_are_a_partition():
    model = build_model({"name": "deeplabv3plus", **SMALL})
    groups = model.parameter_groups(1e-3, 1e-4)
    assert [g["lr"] for g in groups] == [1e-4, 1e-3]
    assert sorted(map(id, groups[0]["params"] + groups[1]["params"])) == sorted(map(id, model.parameters()))


def test_unknown_model_and_argument():
    with pytest.raises(ValueError, match="deeplabv3plus"):
        build_model("unet")
    with pytest.raises(ValueError, match="widht"):
        build_model({"name": "deeplabv3plus", **SMALL, "widht": 3})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_overfits_one_batch(dtype):
    torch.manual_seed(0)
    model = DeepLabV3Plus(**SMALL, dropout=0.0)
    images, labels = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.uint8)
    labels[:, 20:, :40] = 1
    labels[:, :, 50:] = 255
    loss = build_loss({"name": "focal", "gamma": 1.0})
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    values = []
    for _ in range(25):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(images)
        value = loss(logits, labels)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.2 * values[0]


def test_multi_scale_and_flip():
    model = DeepLabV3Plus(**SMALL).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        single = predict_probabilities(model, images)
        torch.testing.assert_close(single, model.predict(images).softmax(1))
        many = predict_probabilities(model, images, (50, 60), (0.5, 1.0, 1.5), flip=True)
        mirrored = predict_probabilities(model, images.flip(-1), (50, 60), (0.5, 1.0, 1.5), flip=True)
        views = predict_views(model, images, (0.5, 1.0, 1.5), flip=True)
    torch.testing.assert_close(many.sum(1), torch.ones(1, 50, 60))
    torch.testing.assert_close(many, mirrored.flip(-1))
    assert len(views.logits) == 6 and views.flipped == [False, True] * 3
    assert (views.labels((50, 60)) == many.argmax(1)).float().mean() > 0.999  # ties within rounding


def test_iou_counts_by_hand():
    iou = IoU(3)
    iou.update(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 255]], dtype=torch.uint8))
    values = iou.compute()
    assert values[:2].tolist() == [0.5, 0.5] and bool(values[2].isnan())
