"""The loss modules against plain PyTorch, and the conventions of the code bases they drop into."""

import inspect
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import metricseg_kernels as kernels
from metricseg.losses import (
    LOSSES,
    CrossEntropyLoss,
    DiceCELoss,
    DiceLoss,
    DistillationLoss,
    FocalLoss,
    JaccardLoss,
    LovaszLoss,
    OhemCrossEntropyLoss,
    PixelLoss,
    SigmoidFocalLoss,
    TverskyLoss,
    build_loss,
)

K = 5


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, K, 6, 7, generator=generator, requires_grad=True)
    labels = torch.randint(0, K, (2, 23, 29), generator=generator, dtype=torch.uint8)
    labels[:, :3] = 255
    return logits, labels


def upsampled(logits, labels):
    return F.interpolate(logits, labels.shape[-2:], mode="bilinear"), labels.long()


def eager_focal(logits, labels, gamma, weight=None):
    z, t = upsampled(logits, labels)
    ce = F.cross_entropy(z, t, ignore_index=255, reduction="none")
    loss = (1 - (-ce).exp()) ** gamma * ce
    return loss if weight is None else loss * weight[t.clamp(max=K - 1)] * (t != 255)


def test_cross_entropy_equals_pytorch(batch):
    weight = torch.rand(K) + 0.5
    loss = CrossEntropyLoss(class_weight=weight, label_smoothing=0.1)(*batch)
    z, t = upsampled(*batch)
    expected = F.cross_entropy(z, t, weight, ignore_index=255, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)


def test_class_weights_as_torch_takes_them(batch):
    weight = torch.rand(K) + 0.5
    logits, labels = batch
    z, t = upsampled(logits, labels)
    expected = torch.nn.CrossEntropyLoss(weight, ignore_index=255)(z, t)
    for loss in (CrossEntropyLoss(weight), CrossEntropyLoss(weight=weight), CrossEntropyLoss(class_weight=weight)):
        torch.testing.assert_close(loss(logits, labels), expected)
    torch.testing.assert_close(
        FocalLoss(weight=weight)(logits, labels), FocalLoss(class_weight=weight)(logits, labels), rtol=0, atol=0
    )
    with pytest.raises(ValueError, match="class_weight and weight are two names of one argument"):
        CrossEntropyLoss(weight, class_weight=weight)


@pytest.mark.parametrize(
    ("name", "given", "shown"),
    [
        ("focal", {"gamma": 1.5, "weight": [1.0, 2.0]}, "gamma=1.5, .*class_weight=\\[1.0, 2.0\\]"),
        ("cross_entropy", {"ignore_index": -100}, "ignore_index=-100"),
        ("sigmoid_focal", {}, "gamma=2.0, alpha=0.25"),
        ("pixel_contrast", {"ignore_index": None}, "temperature=0.1, .*ignore_index=None"),
        ("margin_contrast", {"margin": 0.5, "radius": 3}, "margin=0.5, .*radius=3"),
        ("supcon", {}, "temperature=0.1"),
    ],
)
def test_signature_and_print_show_the_arguments(name, given, shown):
    parameters = inspect.signature(LOSSES.entries[name]).parameters
    assert set(given) | {"backend"} <= set(parameters)
    assert not [p for p in parameters.values() if p.kind is p.VAR_KEYWORD]
    assert re.search(shown, str(build_loss({"name": name, **given})))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_equals_eager_with_gradient(batch, gamma):
    logits, labels = batch
    weight = torch.rand(K) + 0.5
    count = (labels != 255).sum()
    (ours,) = torch.autograd.grad(FocalLoss(gamma, class_weight=weight, loss_weight=3.0)(logits, labels), logits)
    (eager,) = torch.autograd.grad(3 * eager_focal(logits, labels, gamma, weight).sum() / count, logits)
    torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-6)


def test_sigmoid_focal_equals_torchvision(batch):
    ops = pytest.importorskip("torchvision.ops")
    logits, labels = batch
    z, t = upsampled(logits, labels)
    valid = t != 255
    dense = F.one_hot(t.where(valid, torch.zeros_like(t)), K).movedim(-1, 1).float()
    losses = ops.sigmoid_focal_loss(z, dense) * valid[:, None]
    torch.testing.assert_close(SigmoidFocalLoss(reduction="sum")(logits, labels), losses.sum())
    weight = torch.rand(labels.shape)
    torch.testing.assert_close(
        SigmoidFocalLoss()(logits, labels, weight=weight), (losses * weight[:, None]).sum() / (valid.sum() * K)
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_one_class_takes_a_binary_mask(batch, dtype):
    logits, labels = batch[0][:, :1], torch.where(batch[1] == 255, 255, batch[1] % 2).to(dtype)
    z = F.interpolate(logits, labels.shape[-2:], mode="bilinear")[:, 0]
    valid = labels != 255
    expected = F.binary_cross_entropy_with_logits(z[valid], labels[valid].float())
    loss = SigmoidFocalLoss(gamma=0.0, alpha=-1.0)
    for mask in (labels, labels[:, None]):
        torch.testing.assert_close(loss(logits, mask), expected)
    weight = torch.rand(labels.shape)
    torch.testing.assert_close(loss(logits, labels, weight), loss(logits, labels[:, None], weight))
    with pytest.raises(ValueError, match=r"neither in \[0, 1\] nor, .* ignore_index \(255\): for example 2"):
        loss(logits, torch.full_like(labels, 2))
    with pytest.raises(TypeError, match=r"input must be a Tensor \[B, K, h, w\] or .*, got dict"):
        loss({"out": logits}, labels)


@pytest.mark.parametrize("loss", [FocalLoss(), CrossEntropyLoss(), OhemCrossEntropyLoss(min_kept=50), DiceCELoss(),
                                  DiceLoss(), SigmoidFocalLoss()], ids=lambda loss: type(loss).__name__)  # fmt: skip
def test_volumes(loss):
    """As on interpolated logits; labels [B, D, H, W] or [B, 1, D, H, W], and of one class a mask."""
    logits, labels = torch.randn(2, 5, 3, 4, 5), torch.randint(5, (2, 6, 8, 10))
    large = F.interpolate(logits, labels.shape[1:], mode="trilinear")
    for target in (labels, labels[:, None]):
        torch.testing.assert_close(loss(logits, target), loss(large, labels))
    if isinstance(loss, SigmoidFocalLoss):
        torch.testing.assert_close(loss(logits[:, :1], labels % 2), loss(large[:, :1], labels[:, None] % 2))


def test_ohem_averages_the_kept(batch):
    logits, labels = batch
    z, t = upsampled(logits, labels)
    ce = F.cross_entropy(z, t, ignore_index=255, reduction="none")[t != 255]
    kept = ce[(-ce).exp() < max(0.2, (-ce).exp().sort().values[300].item())]
    torch.testing.assert_close(OhemCrossEntropyLoss(0.2, 300)(logits, labels), kept.mean())
    hardest = F.cross_entropy(z, t, ignore_index=255, reduction="none").flatten().topk(int(0.2 * t.numel()))
    torch.testing.assert_close(OhemCrossEntropyLoss(top_k_percent=0.2)(logits, labels), hardest.values.mean())
    with pytest.raises(ValueError, match="a mean of its own"):
        OhemCrossEntropyLoss(0.2, 300, reduction="sum")(logits, labels)


def literal_dice(logits, labels, weight=None):
    """Pixel by pixel and class by class."""
    z, t = upsampled(logits, labels)
    q, t = z.softmax(1).movedim(1, -1)[t != 255], t[t != 255]  # [N, K]
    weight = torch.ones(K) if weight is None else weight
    total, loss = 0.0, logits.sum() * 0
    for k in t.unique().tolist():
        dice = 2 * q[t == k, k].sum() / (q[:, k].sum() + (t == k).sum())
        loss, total = loss + weight[k] * (1 - dice), total + weight[k]
    return loss / total


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 0.5, 2.0, 3.0, 0.25])], ids=["alike", "weighted"])
def test_dice_equals_its_formula_with_gradient(batch, weight):
    """Class 3 is in no label, and its probability counts nowhere."""
    logits, labels = batch[0].detach().double().requires_grad_(), torch.where(batch[1] == 3, 1, batch[1])
    loss, expected = DiceLoss(class_weight=weight)(logits, labels), literal_dice(logits, labels, weight)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    ours, eager = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, eager, rtol=1e-10, atol=1e-14)
    assert DiceLoss()(logits.bfloat16(), labels.long()).dtype == torch.float32


def test_dice_of_a_perfect_map_and_of_an_ignored_class(batch):
    labels = batch[1][:, ::4, ::5].contiguous()
    perfect = F.one_hot(labels.long().clamp(max=K - 1), K).movedim(-1, 1) * 200.0
    assert DiceLoss()(perfect, labels) == 0
    other = torch.where(labels == 0, 255, labels)
    torch.testing.assert_close(
        DiceLoss(ignore_index=0)(perfect, labels.where(labels != 255, 0)), DiceLoss()(perfect, other)
    )


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"input": torch.zeros(K, 4, 4)}, ValueError, r"input must be \[B, K, h, w\] or .*, got shape \(5, 4, 4\)"),
        (
            {"target": torch.zeros(2, 8, 8)},
            TypeError,
            "target must have dtype uint8, int32, int64, got float32",
        ),
        ({"target": torch.zeros(3, 8, 8).byte()}, ValueError, "differ in batch size"),
        (
            {"target": torch.full((2, 8, 8), 9)},
            ValueError,
            r"target holds .* neither ignore_index \(255\) nor in \[0, 5\): for example 9",
        ),
        ({"weight": torch.ones(2, 8, 8)}, ValueError, "a mean of its own"),
        ({"avg_factor": 3.0}, ValueError, "a mean of its own"),
    ],
)
def test_dice_of_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        DiceLoss()(**{"input": torch.zeros(2, K, 4, 4), "target": torch.zeros(2, 8, 8).byte(), **arguments})


def test_losses_of_regions_call_their_kernel(batch):
    """Every argument arrives."""
    logits, labels = batch
    weight = torch.tensor([1.0, 0.5, 2.0, 3.0, 0.25])
    shared = {"smooth": 0.5, "average": "classes", "per_image": True, "align_corners": True, "ignore_index": 255}
    overlap = {"log": True, "label_smoothing": 0.1, "activation": "sigmoid"}
    for loss, form in (
        (DiceLoss(weight=weight, **shared, **overlap), {"form": "dice"}),
        (JaccardLoss(weight=weight, **shared, **overlap), {"form": "jaccard"}),
        (
            TverskyLoss(0.3, 0.8, 1.5, class_weight=weight, **shared, **overlap),
            {"form": "tversky", "alpha": 0.3, "beta": 0.8, "exponent": 1.5},
        ),
    ):
        expected = kernels.region_loss(logits, labels, weight=weight, **form, **shared, **overlap)
        assert loss(logits, labels) == expected != DiceLoss()(logits, labels)
    loss = DiceCELoss(0.5, 2.0, 0.1, weight=weight, **shared, loss_weight=3.0)
    expected = kernels.cross_entropy_dice(
        logits, labels, weight=weight, lambda_dice=0.5, lambda_ce=2.0, label_smoothing=0.1, **shared
    )
    assert loss(logits, labels) == 3 * expected
    defaults = {"smooth": 0.0, "average": "present"}
    assert DiceLoss()(logits, labels) == kernels.region_loss(logits, labels, **defaults)
    assert DiceCELoss()(logits, labels) == kernels.cross_entropy_dice(logits, labels, **defaults)
    loss = LovaszLoss(64, weight=weight, per_image=True, align_corners=True, ignore_index=255)
    expected = kernels.lovasz_loss(logits, labels, bins=64, weight=weight, per_image=True, align_corners=True)
    assert loss(logits, labels) == expected != LovaszLoss()(logits, labels) == kernels.lovasz_loss(logits, labels)
    with pytest.raises(ValueError, match='gather is 3; it takes "all" or None'):
        DiceLoss(gather=3)
    with pytest.raises(ValueError, match="with per_image=True there are none"):
        DiceCELoss(gather="all", per_image=True)


def test_distillation_calls_its_kernel(batch):
    """Every argument arrives."""
    logits, labels = batch
    teacher = torch.randn(2, K, 3, 4, generator=torch.Generator().manual_seed(1))
    options = {"temperature": 2.0, "kind": "js", "ignore_index": 1, "reduction": "sum", "align_corners": True}
    found = build_loss({"name": "distillation", **options, "loss_weight": 3.0})(logits, teacher, labels)
    expected = kernels.distillation_loss(logits, teacher, labels, **options)
    default = DistillationLoss()(logits, teacher, labels)
    assert found == 3 * expected != 3 * default and default == kernels.distillation_loss(logits, teacher, labels)
    p, q = (F.interpolate(x, labels.shape[-2:], mode="bilinear").log_softmax(1) for x in (logits, teacher))
    pixels = F.kl_div(p, q, reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(default, pixels[labels != 255].mean())
    size = DistillationLoss(reduction="none")(logits, teacher, tuple(labels.shape[-2:]))
    torch.testing.assert_close(size, pixels)
    default.backward()
    assert logits.grad.isfinite().all() and logits.grad.any()
    for wrong, words in (({"temperature": 0}, "temperature is 0; it takes a finite number > 0"),
                         ({"kind": "mse"}, "kind is 'mse'; it takes \"kl\""),
                         ({"reduction": "batchmean"}, "reduction is 'batchmean'; it takes \"mean\"")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            DistillationLoss(**wrong)


def test_pixel_weights_and_avg_factor(batch):
    logits, labels = batch
    weight = torch.rand(labels.shape)
    losses = eager_focal(logits, labels, 2.0)
    loss = FocalLoss()
    torch.testing.assert_close(loss(logits, labels, weight), (losses * weight).sum() / (labels != 255).sum())
    torch.testing.assert_close(loss(logits, labels, weight, avg_factor=7), (losses * weight).sum() / 7)
    torch.testing.assert_close(loss(logits, labels, avg_factor=7), losses.sum() / 7)
    torch.testing.assert_close(loss(logits, labels, reduction_override="none"), losses)
    torch.testing.assert_close(loss(logits, labels, weight, reduction_override="none"), losses * weight)


def test_mmsegmentation_call(batch):
    """The call of an mmsegmentation 1.x head, ignore index by call."""
    logits, labels = batch
    loss = build_loss({"name": "cross_entropy", "loss_weight": 0.4, "loss_name": "loss_aux"})
    assert loss.loss_name.startswith("loss_")
    value = loss(logits, labels.long().where(labels != 255, torch.tensor(-100)), weight=None, ignore_index=-100)
    torch.testing.assert_close(value, 0.4 * CrossEntropyLoss()(logits, labels))


def test_everything_ignored_is_zero_with_zero_gradient(batch):
    logits, labels = batch
    for name in (name for name, made in LOSSES.entries.items() if issubclass(made, PixelLoss)):
        (grad,) = torch.autograd.grad(build_loss(name)(logits, torch.full_like(labels, 255)), logits)
        assert float(grad.abs().max()) == 0.0, name


def test_class_weights_move_and_are_not_saved():
    loss = FocalLoss(class_weight=[1.0, 2.0])
    assert loss.to(torch.float64).class_weight.dtype == torch.float64
    assert loss.state_dict() == FocalLoss().state_dict() == {}
    loss.load_state_dict({"class_weight": torch.tensor([3.0, 4.0])})  # of an older version
    assert loss.class_weight.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            "wing",
            "there are contrastive, cross_entropy, dice, dice_ce, distillation, focal, jaccard, lovasz, margin_contrast, ",
        ),
        ({"name": "focal", "gama": 2.0}, "gama"),
        ({"name": "focal", "gamma": -1.0}, "gamma is -1.0"),
        ({"name": "focal", "class_weight": [1.0, float("nan")]}, "class_weight"),
        ({"name": "focal", "reduction": "avg"}, "reduction is 'avg'"),
        ({"name": "sigmoid_focal", "class_weight": [1.0]}, "alpha"),
        ({"class_path": "no.such.Loss"}, "can't be imported"),
    ],
)
def test_bad_configuration(config, words):
    with pytest.raises(ValueError, match=words):
        build_loss(config)


def test_class_path_builds_a_loss_from_elsewhere():
    loss = build_loss({"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"ignore_index": 7}})
    assert isinstance(loss, torch.nn.CrossEntropyLoss) and loss.ignore_index == 7


def test_wrong_number_of_class_weights(batch):
    with pytest.raises(ValueError, match="weight"):
        FocalLoss(class_weight=[1.0] * (K + 1))(*batch)


def test_losses_and_layers_need_no_extra():
    """Importing losses and layers pulls in neither torchvision, timm nor lightning."""
    code = (
        "import sys, metricseg, metricseg.losses, metricseg.layers; "
        "sys.exit(any(m in sys.modules for m in ('torchvision', 'timm', 'lightning', 'torchmetrics')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
