"""Intersection over union, over all pixels and over those near label borders."""

import pytest

pytest.importorskip("torchmetrics")
import torch
import torch.nn.functional as F

from metricseg.training.evaluation import BoundaryIoU, IoU, Views


@pytest.mark.parametrize(
    ("preds", "target", "words"),
    [
        (0, 7, r"labels must be in \[0, 7\), got 7"),
        (0, -1, r"labels must be in \[0, 7\), got -1"),
        (0, 254, r"labels must be in \[0, 7\), got 254"),
        (7, 255, r"predicted must be in \[0, 7\), got 7"),
    ],
)
def test_iou_names_labels_out_of_range(preds, target, words):
    iou = IoU(7)
    with pytest.raises(ValueError, match=words):
        iou.update(torch.full((1, 2, 2), preds), torch.full((1, 2, 2), target))
    iou.update(torch.zeros(1, 2, 2).long(), torch.full((1, 2, 2), 255))
    assert bool(iou.compute().isnan().all())


@pytest.mark.parametrize("width", [1, 3])
def test_boundary_iou_is_the_iou_of_the_pixels_near_a_border(width):
    torch.manual_seed(0)
    labels = F.interpolate(torch.randint(0, 3, (2, 1, 5, 6)).float(), (23, 31))[:, 0].to(torch.uint8)
    labels[:, 4:9, 10:20] = 255
    preds = torch.where(
        torch.rand(labels.shape) < 0.7, labels % 3, torch.randint(0, 3, labels.shape, dtype=torch.uint8)
    )
    near = torch.zeros_like(labels, dtype=torch.bool)
    for b, y, x in (labels != 255).nonzero().tolist():
        window = labels[b, max(y - width, 0) : y + width + 1, max(x - width, 0) : x + width + 1]
        near[b, y, x] = bool(((window != labels[b, y, x]) & (window != 255)).any())
    assert 0.1 < near.float().mean() < 0.9
    found, expected = BoundaryIoU(3, width), IoU(3)
    found.update(preds, labels)
    expected.update(preds, torch.where(near, labels, 255))
    assert torch.equal(found.compute(), expected.compute())
    with pytest.raises(ValueError, match="width is 0; it takes pixels, an integer >= 1"):
        BoundaryIoU(3, 0)


def test_views_are_counted_as_their_labels_are():
    torch.manual_seed(0)
    views = Views([torch.randn(2, 3, 6, 8), torch.randn(2, 3, 9, 12)], [False, True])
    labels = F.interpolate(torch.randint(0, 3, (2, 1, 5, 6)).float(), (23, 31))[:, 0].to(torch.uint8)
    labels[:, :3] = 255
    predicted = views.labels((23, 31))
    assert predicted.dtype == torch.uint8
    for metric in (IoU(3), BoundaryIoU(3)):
        metric.update(predicted, labels)
        expected = metric.compute()
        metric.reset()
        metric.update(views, labels)
        assert torch.equal(metric.compute(), expected)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), got 7"):
        IoU(3).update(views, torch.full_like(labels, 7))
