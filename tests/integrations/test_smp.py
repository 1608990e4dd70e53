"""segmentation_models_pytorch: small logits in training, value and gradient of the host's path, and nothing lost."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_argmax

smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed")

from metricseg.integrations.smp import low_resolution  # noqa: E402
from metricseg.losses import CrossEntropyLoss, DiceLoss, FocalLoss, SigmoidFocalLoss  # noqa: E402
from metricseg_kernels import predict_labels  # noqa: E402

K = 5
UPSAMPLE = {
    "DeepLabV3": 8, "DeepLabV3Plus": 4, "FPN": 4, "PAN": 4, "PSPNet": 8, "Segformer": 4, "UPerNet": 4, "DPT": 2,
}  # fmt: skip
NARROW = {"DeepLabV3": {"decoder_channels": 32}, "UPerNet": {"decoder_channels": 32}}  # 256 would take seconds
FULL_SIZE = ("Unet", "UnetPlusPlus", "Linknet", "MAnet")


def network(name, classes=K, encoder="mobilenet_v2", **options):
    torch.manual_seed(0)
    if name == "DPT":
        return smp.DPT(
            "tu-vit_tiny_patch16_224", encoder_weights=None, classes=classes, decoder_fusion_channels=16,
            decoder_intermediate_channels=(8, 16, 32, 32), dynamic_img_size=True, **options,
        )  # fmt: skip
    options = {**NARROW.get(name, {}), **options}
    return getattr(smp, name)(encoder, encoder_weights=None, classes=classes, **options)


def batch(size=128, classes=K):
    """Images [2, 3, size, size] and labels [2, size, size], some of them ignored."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, size, size, generator=generator)
    labels = torch.randint(0, classes, (2, size, size), generator=generator)
    labels[:, :5] = 255
    return images, labels


def frozen(model):
    """Training mode whose forward is a function: batch normalization by running statistics, no dropout."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm | torch.nn.modules.dropout._DropoutNd):
            module.eval()
    return model


def gradients(loss, model):
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("name", "factor"), UPSAMPLE.items())
def test_value_and_gradient_of_the_hosts_loss(name, factor):
    images, labels = batch()
    model = frozen(network(name)).double()
    host = copy.deepcopy(model)
    criterion = CrossEntropyLoss()
    low_resolution(model, criterion)
    logits, expected = model(images.double()), host(images.double())
    assert logits.shape == (2, K, 128 // factor, 128 // factor) and expected.shape == (2, K, 128, 128)
    loss, reference = criterion(logits, labels), F.cross_entropy(expected, labels, ignore_index=255)
    torch.testing.assert_close(loss, reference, rtol=1e-10, atol=1e-12)
    ours, theirs = gradients(loss, model), gradients(reference, host)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-6, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", UPSAMPLE)
def test_eval_mode_predict_and_state_dict_are_unchanged(name):
    images, _ = batch()
    model = network(name).eval()
    expected, keys = model(images), model.state_dict().keys()
    low_resolution(model, FocalLoss())
    torch.testing.assert_close(model(images), expected, rtol=0, atol=0)
    torch.testing.assert_close(model.predict(images), expected, rtol=0, atol=0)
    assert model.state_dict().keys() == keys


@pytest.mark.parametrize("name", FULL_SIZE)
def test_decoders_with_nothing_to_gain(name):
    images, labels = batch()
    model, criterion = network(name), CrossEntropyLoss()
    with pytest.warns(UserWarning, match=f"{name}'s head does not upsample.*there is nothing to gain"):
        assert low_resolution(model, criterion) is model
    logits = model(images)
    torch.testing.assert_close(criterion(logits, labels), F.cross_entropy(logits, labels, ignore_index=255))


def test_a_factor_of_your_own():
    """`upsampling=1` leaves nothing to remove, and 8 more than the labels have."""
    images, labels = batch()
    with pytest.warns(UserWarning, match="nothing to gain"):
        low_resolution(network("FPN", upsampling=1))
    model = frozen(network("FPN", upsampling=8))
    criterion = CrossEntropyLoss()
    large = F.interpolate(labels[:, None].double(), scale_factor=2)[:, 0].long()
    expected = F.cross_entropy(model(images), large, ignore_index=255)
    torch.testing.assert_close(criterion(low_resolution(model, criterion)(images), large), expected)


@pytest.mark.parametrize("shape", [(2, 1, 128, 128), (2, 128, 128)], ids=["masks with a channel", "masks without"])
def test_binary_masks(shape):
    images, labels = batch(classes=2)
    model = frozen(network("FPN", classes=1)).double()
    z = model(images.double())[:, 0]
    valid = labels != 255
    expected = F.binary_cross_entropy_with_logits(z[valid], labels[valid].double())
    criterion = SigmoidFocalLoss(gamma=0.0, alpha=-1.0)
    logits = low_resolution(model, criterion)(images.double())
    assert logits.shape == (2, 1, 32, 32)
    torch.testing.assert_close(criterion(logits, labels.view(shape)), expected)
    with pytest.raises(ValueError, match="input must have two classes or more"):
        FocalLoss()(logits, labels)


def test_the_hosts_metrics():
    images, labels = batch()
    model = low_resolution(network("FPN"), FocalLoss()).eval()
    with torch.no_grad():
        prediction = model(images).argmax(1)
    stats = smp.metrics.get_stats(prediction, labels, mode="multiclass", num_classes=K, ignore_index=255)
    accuracy = smp.metrics.accuracy(*stats, reduction="micro")
    tp, fp, fn, _ = (part.sum() for part in stats)
    assert tp == (prediction == labels).sum() and tp + fn == (labels != 255).sum() == tp + fp
    assert 0 <= accuracy <= 1


@pytest.mark.parametrize("name", UPSAMPLE)
def test_predict_labels_is_the_argmax_of_the_model(name):
    images, _ = batch()
    model = network(name).eval()
    with torch.no_grad():
        if name == "DPT":
            small = model.segmentation_head.head(model.decoder(*model.encoder(images)))
        else:
            small = model.segmentation_head[0](model.decoder(model.encoder(images)))
        labels, expected = predict_labels(small, images.shape[-2:], align_corners=True), model(images)
    assert small.shape[-1] == 128 // UPSAMPLE[name]
    assert_argmax(labels, expected, expected.argmax(1))


def test_auxiliary_classifier_and_activation():
    """The class output stays, and training gives logits, not probabilities; eval mode gives what it gave."""
    images, labels = batch()
    model = network("FPN", activation="softmax2d", aux_params={"classes": 3})
    criterion = CrossEntropyLoss()
    masks, classes = low_resolution(model, criterion)(images)
    assert masks.shape == (2, K, 32, 32) and classes.shape == (2, 3)
    assert masks.min() < 0
    assert criterion(masks, labels).isfinite()
    torch.testing.assert_close(model.eval()(images)[0].sum(1), torch.ones(2, 128, 128))


def test_a_frozen_encoder_changes_nothing():
    images, _ = batch()
    model = low_resolution(network("FPN"), FocalLoss())
    if not hasattr(model, "freeze_encoder"):
        pytest.skip("this version of segmentation_models_pytorch has no freeze_encoder")
    model.freeze_encoder()
    assert model.train()(images).shape == (2, K, 32, 32) and model.eval()(images).shape == (2, K, 128, 128)


def test_the_criterion_follows_or_a_warning_says_so():
    criterion = torch.nn.ModuleList([FocalLoss(), DiceLoss()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low_resolution(network("FPN"), criterion)
    assert criterion[0].align_corners
    with pytest.warns(UserWarning, match="FPN's head upsamples with align_corners=True, and so must the loss"):
        low_resolution(network("FPN"))
    with pytest.raises(TypeError, match="criterion is a CrossEntropyLoss, which can't take low-resolution logits"):
        low_resolution(network("FPN"), torch.nn.CrossEntropyLoss())


def test_other_models_and_heads():
    with pytest.raises(TypeError, match="model is a Conv2d; it takes one of segmentation_models_pytorch"):
        low_resolution(torch.nn.Conv2d(3, 5, 1))
    model = network("FPN")
    model.segmentation_head = torch.nn.Conv2d(128, K, 1)
    with pytest.raises(TypeError, match=r"model.segmentation_head is Conv2d.*it takes smp's SegmentationHead"):
        low_resolution(model)


def test_under_compile():
    images, labels = batch()
    criterion = CrossEntropyLoss()
    model = frozen(low_resolution(network("PSPNet", encoder="resnet18"), criterion)).double()
    expected = gradients(criterion(model(images.double()), labels), model)
    expected = {name: grad.clone() for name, grad in expected.items()}
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager")
    ours = gradients(criterion(compiled(images.double()), labels), model)
    for name, grad in expected.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-8, atol=1e-10)


def test_export():
    images, _ = batch()
    model = low_resolution(network("PSPNet", encoder="resnet18"), FocalLoss()).eval()
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images))
