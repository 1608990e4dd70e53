"""torchvision's DeepLabV3, FCN and LR-ASPP against the criterion of its references."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_argmax

models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
segmentation = models.segmentation

from metricseg.integrations.torchvision import low_resolution, torchvision_loss  # noqa: E402
from metricseg.losses import CrossEntropyLoss, FocalLoss  # noqa: E402
from metricseg_kernels import predict_labels  # noqa: E402

K = 5
NETWORKS = {
    "deeplabv3": lambda: segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=K, aux_loss=True
    ),
    "deeplabv3 alone": lambda: segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=K, aux_loss=False
    ),
    "fcn": lambda: small_fcn(),
    "lraspp": lambda: segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=K),
}
SMALL = {"deeplabv3": (5, 6), "deeplabv3 alone": (5, 6), "fcn": (3, 3), "lraspp": (9, 12)}


def small_fcn():
    resnet = models.resnet18(weights=None)
    backbone = models._utils.IntermediateLayerGetter(resnet, {"layer4": "out", "layer3": "aux"})
    return segmentation.FCN(backbone, segmentation.fcn.FCNHead(512, K), segmentation.fcn.FCNHead(256, K))


def references_criterion(inputs, target):
    """torchvision's references/segmentation/train.py."""
    losses = {name: F.cross_entropy(x, target, ignore_index=255) for name, x in inputs.items()}
    return losses["out"] if len(losses) == 1 else losses["out"] + 0.5 * losses["aux"]


def network(name):
    """In training mode, with batch normalization by running statistics and without dropout: forward is a function."""
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.modules.dropout._DropoutNd):
            module.eval()
    return model


@pytest.fixture
def batch():
    """Images of a size that no stride divides."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 67, 90, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, K, (2, 67, 90), generator=generator)
    labels[:, :5] = 255
    return images, labels


@pytest.mark.parametrize("name", NETWORKS)
def test_value_and_gradient_of_the_references(name, batch):
    images, labels = batch
    model = network(name)
    host = copy.deepcopy(model)
    criterion = torchvision_loss(CrossEntropyLoss())
    outputs = low_resolution(model, criterion)(images)
    assert outputs.keys() == host(images).keys()
    assert outputs["out"].shape == (2, K, *SMALL[name])
    loss, expected = criterion(outputs, labels), references_criterion(host(images), labels)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    loss.backward()
    expected.backward()
    for (key, ours), theirs in zip(model.named_parameters(), host.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=1e-6, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_eval_mode_and_state_dict_are_unchanged(name, batch):
    model = network(name).eval()
    expected, keys = model(batch[0]), model.state_dict().keys()
    low_resolution(model)
    outputs = model(batch[0])
    assert outputs.keys() == expected.keys() and model.state_dict().keys() == keys
    for key, value in expected.items():
        torch.testing.assert_close(outputs[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_predict_labels_is_the_argmax_of_the_model(name, batch):
    images = batch[0].float()
    model = network(name).float().eval()
    with torch.no_grad():
        features = model.backbone(images)
        small = model.classifier(features if name == "lraspp" else features["out"])
        labels, expected = predict_labels(small, images.shape[-2:]), model(images)["out"]
    assert_argmax(labels, expected, expected.argmax(1))


def test_the_weight_of_the_auxiliary_classifier(batch):
    out, aux = torch.randn(2, K, 8, 8), torch.randn(2, K, 4, 4)
    focal = FocalLoss()
    expected = focal(out, batch[1]) + 0.3 * focal(aux, batch[1])
    torch.testing.assert_close(torchvision_loss(focal, aux_weight=0.3)({"out": out, "aux": aux}, batch[1]), expected)


def test_the_criterion_follows():
    criterion = torchvision_loss(FocalLoss(align_corners=True))
    low_resolution(network("lraspp"), criterion)
    assert not criterion.criterion.align_corners


def test_under_compile_in_one_graph(batch):
    images, labels = batch
    criterion = torchvision_loss(CrossEntropyLoss())
    model = low_resolution(network("fcn"), criterion)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss = criterion(compiled(images), labels)
    torch.testing.assert_close(loss, criterion(model(images), labels))
    loss.backward()
    assert model.backbone["conv1"].weight.grad.norm() > 0


def test_bad_arguments(batch):
    with pytest.raises(TypeError, match="model is a Conv2d; it takes torchvision's DeepLabV3, FCN or LRASPP"):
        low_resolution(torch.nn.Conv2d(3, K, 1))
    with pytest.raises(TypeError, match="criterion is a TorchvisionLoss, which can't take low-resolution logits"):
        low_resolution(network("lraspp"), torchvision_loss(torch.nn.CrossEntropyLoss()))
    with pytest.raises(ValueError, match="aux_weight is nan; it takes a finite factor"):
        torchvision_loss(FocalLoss(), aux_weight=float("nan"))
    criterion = torchvision_loss(FocalLoss())
    with pytest.raises(TypeError, match=r"outputs has the keys \['logits'\]; it takes a dictionary with \"out\""):
        criterion({"logits": torch.zeros(2, K, 4, 4)}, batch[1])
    with pytest.raises(TypeError, match="outputs has a Tensor"):
        criterion(torch.zeros(2, K, 4, 4), batch[1])
