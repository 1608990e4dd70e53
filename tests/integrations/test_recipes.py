"""The recipes of docs/hosts.md for hosts without an adapter: their losses, value and gradient, by ours.

MONAI and kornia are the real libraries. Of the others, which pip does not have or which need much more, the published
formula stands here.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metricseg.losses import CrossEntropyLoss, FocalLoss, OhemCrossEntropyLoss, SigmoidFocalLoss
from metricseg_kernels import cross_entropy, focal_loss, ohem_cross_entropy, sigmoid_focal_loss

K, STRIDE = 5, 4


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Logits [2, K, 8, 12] in fp64 and labels [2, 32, 48], some of them ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, K, 8, 12, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, K, (2, 8 * STRIDE, 12 * STRIDE), generator=generator)
    labels[:, :5] = 255
    return logits, labels


def assert_same(ours, theirs, logits: Tensor, rtol: float = 1e-10) -> None:
    """Value and gradient of two functions of logits."""
    x, y = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, expected = ours(x), theirs(y)
    torch.testing.assert_close(loss, expected.to(loss.dtype), rtol=rtol, atol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=max(1e-7, rtol), atol=1e-12)
    assert y.grad.any()


class SemSegFPNHead(torch.nn.Module):
    """detectron2, detectron2/modeling/meta_arch/semantic_seg.py: its `losses`, with "cross_entropy"; and the
    "hard_pixel_mining" of DeepLabV3PlusHead, projects/DeepLab/deeplab/semantic_seg.py and loss.py."""

    common_stride, ignore_value, loss_weight = STRIDE, 255, 0.5

    def __init__(self, loss_type: str) -> None:
        super().__init__()
        self.loss_type = loss_type

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        large = F.interpolate(predictions, scale_factor=self.common_stride, mode="bilinear", align_corners=False)
        if self.loss_type == "cross_entropy":
            loss = F.cross_entropy(large, targets, ignore_index=self.ignore_value)
        else:
            pixels = F.cross_entropy(large, targets, ignore_index=self.ignore_value, reduction="none").flatten()
            loss = pixels.topk(int(0.2 * pixels.numel())).values.mean()
        return {"loss_sem_seg": loss * self.loss_weight}


class SmallHead(SemSegFPNHead):
    """The recipe."""

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if self.loss_type == "cross_entropy":
            loss = cross_entropy(predictions, targets, ignore_index=self.ignore_value)
        else:
            loss = ohem_cross_entropy(predictions, targets, top_k_percent=0.2, ignore_index=self.ignore_value)
        return {"loss_sem_seg": loss * self.loss_weight}


@pytest.mark.parametrize("loss_type", ["cross_entropy", "hard_pixel_mining"])
def test_the_heads_of_detectron2(loss_type, batch):
    logits, labels = batch
    assert_same(
        lambda x: SmallHead(loss_type).losses(x, labels)["loss_sem_seg"],
        lambda x: SemSegFPNHead(loss_type).losses(x, labels)["loss_sem_seg"],
        logits,
    )
    with pytest.raises(ValueError, match="takes the place of thresh and min_kept, got thresh=0.7, min_kept=10"):
        OhemCrossEntropyLoss(min_kept=10, top_k_percent=0.2)(logits, labels)


def points(kind: str) -> tuple[Tensor, Tensor]:
    """Point logits [N, K, P] of 3 pictures or masks, and labels [N, P]."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, K if kind == "classes" else 1, 112, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, K if kind == "classes" else 2, (3, 112), generator=generator)


def test_classes_of_points():
    """PointRend, projects/PointRend/point_rend/semantic_seg.py: cross-entropy of [N, K, P] logits."""
    logits, labels = points("classes")
    labels[:, :9] = 255
    assert_same(
        lambda x: cross_entropy(x[..., None], labels[..., None]),
        lambda x: F.cross_entropy(x, labels, ignore_index=255),
        logits,
    )
    ops = pytest.importorskip("torchvision.ops")
    one_hot = F.one_hot(torch.where(labels == 255, 0, labels), K).movedim(-1, 1).double()
    valid = (labels != 255).sum() * K
    assert_same(
        lambda x: sigmoid_focal_loss(x[..., None], labels[..., None]),
        lambda x: (ops.sigmoid_focal_loss(x, one_hot) * (labels != 255)[:, None]).sum() / valid,
        logits,
    )


def test_masks_of_points():
    """Mask2Former, mask2former/modeling/criterion.py: `sigmoid_ce_loss` of [N, P] logits of N masks at P points; and
    MaskFormer's `sigmoid_focal_loss`, torchvision's, with the same means."""
    logits, labels = points("masks")
    logits, masks, num_masks = logits[:, 0], labels.double(), 2.0
    whole = {"reduction": "sum", "ignore_index": None}

    def ours(x: Tensor, **options: float) -> Tensor:
        return sigmoid_focal_loss(x[:, None, :, None], masks[:, None, :, None], **options, **whole) / (112 * num_masks)

    assert_same(
        lambda x: ours(x, gamma=0.0, alpha=-1.0),
        lambda x: F.binary_cross_entropy_with_logits(x, masks, reduction="none").mean(1).sum() / num_masks,
        logits,
    )
    ops = pytest.importorskip("torchvision.ops")
    assert_same(
        lambda x: ours(x, gamma=2.0, alpha=0.25),
        lambda x: ops.sigmoid_focal_loss(x, masks, alpha=0.25, gamma=2.0).mean(1).sum() / num_masks,
        logits,
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [K, 1])
def test_cross_entropy_of_ultralytics(classes, weighted, batch):
    """ultralytics/utils/loss.py, SemanticSegmentationLoss._ce_loss: a sum over the count, or the weights, of the valid
    pixels of logits that were upsampled."""
    logits, labels = batch[0][:, :classes], batch[1].clone()
    valid = labels != 255
    if classes == 1:
        labels = torch.where(valid, labels % 2, 255)
        criterion = SigmoidFocalLoss(gamma=0.0, alpha=-1.0)
    else:
        weight = torch.rand(K, generator=torch.Generator().manual_seed(3), dtype=torch.float64) if weighted else None
        criterion = CrossEntropyLoss(weight)

    def theirs(x: Tensor) -> Tensor:
        x = F.interpolate(x, labels.shape[1:], mode="bilinear")
        if classes == 1:
            total = F.binary_cross_entropy_with_logits(x[:, 0][valid], labels[valid].double(), reduction="sum")
            return total / valid.sum()
        w = None if weight is None else weight.float().double()  # ours keeps class weights in float32
        total = F.cross_entropy(x, labels, w, ignore_index=255, reduction="sum")
        return total / (valid.sum() if w is None else w[labels[valid]].sum())

    assert_same(lambda x: criterion(x, labels.to(torch.int32)), theirs, logits)


LOSSES = {
    "cross_entropy": CrossEntropyLoss(), "focal": FocalLoss(), "ohem": OhemCrossEntropyLoss(0.5, 100),
    "sigmoid_focal": SigmoidFocalLoss(),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name", LOSSES)
def test_labels_of_one_channel(name, dtype, batch):
    """[B, 1, H, W] in any integer dtype, as MONAI's transforms give them."""
    logits, labels = batch
    assert torch.equal(LOSSES[name](logits, labels[:, None].to(dtype)), LOSSES[name](logits, labels))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "sigmoid_focal"])
def test_one_hot_labels_are_refused_with_what_to_write(name, batch):
    logits, labels = batch
    one_hot = F.one_hot(torch.where(labels == 255, 0, labels), K).movedim(-1, 1)
    for maps in (one_hot, one_hot.float()):
        with pytest.raises(ValueError, match=r"class indices \[B, H, W\], got shape \(2, 5, 32, 48\);.*argmax\(1\)"):
            LOSSES[name](logits, maps)
    with pytest.raises(TypeError, match="target must have dtype uint8, int32, int64, got float32"):
        LOSSES[name](logits, labels[:, None].float())


def test_the_focal_loss_of_monai(batch):
    """Softmax: its mean divides by K times as many terms, but not so with ignore_index; sigmoid: by as many as ours."""
    losses = pytest.importorskip("monai.losses", reason="monai is not installed")
    logits, labels = batch
    x = F.interpolate(logits, labels.shape[1:], mode="bilinear").float()  # it computes in float32
    full = torch.where(labels == 255, 0, labels)[:, None]
    theirs = losses.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0)
    assert_same(lambda x: focal_loss(x, full) / K, lambda x: theirs(x, full), x, rtol=2e-6)
    weighted = losses.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0, alpha=0.3)
    ours = FocalLoss(class_weight=[0.7] + [0.3] * (K - 1))
    assert_same(lambda x: ours(x, full) / K, lambda x: weighted(x, full), x, rtol=2e-6)
    ignoring = losses.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0, ignore_index=255)
    assert_same(lambda x: focal_loss(x, labels[:, None]), lambda x: ignoring(x, labels[:, None]), x, rtol=2e-6)
    sigmoid = losses.FocalLoss(to_onehot_y=True, gamma=2.0, alpha=0.25)
    assert_same(lambda x: sigmoid_focal_loss(x, full), lambda x: sigmoid(x, full), x, rtol=2e-6)


def test_tensors_of_monai(batch):
    """MetaTensor, with its own channel."""
    data = pytest.importorskip("monai.data", reason="monai is not installed")
    logits, labels = batch
    meta = data.MetaTensor(labels[:, None].to(torch.uint8))
    for loss in LOSSES.values():
        x = logits.clone().requires_grad_()
        value = loss(x, meta)
        value.backward()
        torch.testing.assert_close(torch.as_tensor(value), loss(logits, labels), check_dtype=False)
        assert x.grad.any()


def test_the_focal_loss_of_kornia(batch):
    """Its mean divides by K times all pixels, ignored ones included."""
    losses = pytest.importorskip("kornia.losses", reason="kornia is not installed")
    logits, labels = batch
    x = F.interpolate(logits, labels.shape[1:], mode="bilinear")
    options = {"alpha": None, "gamma": 2.0, "reduction": "mean", "ignore_index": 255}
    full = torch.where(labels == 255, 0, labels)
    assert_same(lambda x: focal_loss(x, full) / K, lambda x: losses.focal_loss(x, full, **options), x)
    ours = FocalLoss(class_weight=[0.75] + [0.25] * (K - 1))
    weighted = {**options, "alpha": 0.25}
    assert_same(lambda x: ours(x, full) / K, lambda x: losses.focal_loss(x, full, **weighted), x)
    assert_same(
        lambda x: focal_loss(x, labels, avg_factor=K * labels.numel()),
        lambda x: losses.focal_loss(x, labels, **options),
        x,
    )
