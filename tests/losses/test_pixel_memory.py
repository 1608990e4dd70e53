"""The bank of earlier pixels against a plain one of lists, and the troubles of the published one."""

import copy
import pickle
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from guard import never_waiting
from test_losses_contrast import published

from metricseg.losses import PixelContrastLoss, PixelMemory

FAMILY = "contrast"
K, D, SIZE, PIXELS = 4, 6, 10, 3


def images(seed, size=(5, 7), dtype=torch.float32):
    """Features [2, D, h, w] and labels [2, h, w], with ignored pixels and class 3 in every other batch only."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K - seed % 2, (2, *size), generator=generator)
    labels[:, 0] = 255
    return torch.randn(2, D, *size, generator=generator, dtype=torch.float64).to(dtype), labels


def filled(memory):
    """What is in the rings: {(kind, class): rows}, kind 0 for segment means and 1 for pixels."""
    memory.flush()
    rows, labels = memory.rows()
    rows, labels = rows.view(2, K, -1, D), labels.view(2, K, -1)
    assert ((labels == -1) | (labels == torch.arange(K)[:, None])).all()
    return {(kind, k): rows[kind, k][labels[kind, k] == k] for kind in (0, 1) for k in range(K)}


def same_rows(ours, expected):
    """As sets."""
    ours, expected = (sorted(map(tuple, torch.as_tensor(x).tolist())) for x in (ours, expected))
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_rings_hold_the_last_means_and_pixels_of_every_class(steps):
    """Class 0 too; the oldest make room; every pixel is one of its class; none comes twice from one image."""
    memory = PixelMemory(K, D, SIZE, PIXELS)
    means = [deque(maxlen=SIZE) for _ in range(K)]
    groups = [[] for _ in range(K)]
    for step in range(steps):
        features, labels = images(step)
        memory.update(features, labels, seed=step)
        unit = F.normalize(features, dim=1)
        for image, label in zip(unit, labels, strict=True):
            for k in label[label != 255].unique().tolist():
                means[k].append(F.normalize(image[:, label == k].mean(1), dim=0).tolist())
                groups[k].append(image[:, label == k].T)
    rings = filled(memory)
    for k in range(K):
        same_rows(rings[0, k], list(means[k]))
        took = [min(PIXELS, len(group)) for group in groups[k]]
        assert len(rings[1, k]) == min(sum(took), SIZE)
        # of the newest images, so many pixels as each gives; of the oldest that is left, the rest
        seen = 0
        for group, count in zip(reversed(groups[k]), reversed(took), strict=True):
            known = (rings[1, k][:, None] - group).abs().amax(2).amin(1) < 1e-6
            assert known.sum() == min(count, SIZE - seen)
            seen += int(known.sum())
        assert seen == len(rings[1, k])
        assert torch.allclose(torch.cat([rings[0, k], rings[1, k]]).norm(dim=1), torch.tensor(1.0))


def test_pixels_of_one_update_do_not_overwrite_those_of_the_last():
    """The published pointer moves by one whatever it wrote."""
    memory = PixelMemory(1, D, 6, 3)
    rows = F.normalize(torch.randn(2, D, 1, 3), dim=1)
    for image in rows:
        memory.update(image[None], torch.zeros(1, 1, 3, dtype=torch.long))
    memory.flush()
    same_rows(memory.rows()[0][6:], rows.movedim(1, 3).reshape(6, D))


def test_one_image_with_more_pixels_than_a_ring_has():
    memory = PixelMemory(1, D, 4, 9)
    features = torch.randn(1, D, 3, 3)
    for _ in range(3):
        memory.update(features, torch.zeros(1, 3, 3, dtype=torch.uint8))
    memory.flush()
    rows, unit = memory.rows()[0][4:], F.normalize(features, dim=1).flatten(2)[0].T
    assert ((rows[:, None] - unit).abs().amax(2) < 1e-6).sum(1).eq(1).all() and len(rows.unique(dim=0)) == 4


def test_unfilled_rows_and_rows_of_norm_zero_are_nobodys():
    memory = PixelMemory(K, D, SIZE, PIXELS)
    assert (memory.rows()[1] == -1).all()
    features, labels = torch.zeros(1, D, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
    memory.update(features, labels)
    memory.update(features + 1, torch.full_like(labels, 255))
    memory.flush()
    assert (memory.rows()[1] == -1).all() and not memory.written.any()


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(kind):
    features, labels = images(2)
    memory, expected = (PixelMemory(K, D, SIZE, PIXELS) for _ in range(2))
    expected.update(features, labels, seed=0)
    memory.to(kind).update((features * 1e3).to(kind), labels.to(torch.uint8), seed=0)
    for ring, rows in filled(memory).items():
        assert rows.dtype == kind
        torch.testing.assert_close(rows.float(), filled(expected)[ring], rtol=0.02, atol=0.02)


def test_the_state_is_saved_and_goes_on():
    memory = PixelMemory(K, D, SIZE, PIXELS)
    for step in range(3):
        memory.update(*images(step), seed=step)
    other = PixelMemory(K, D, SIZE, PIXELS)
    other.update(*images(9), seed=0)
    other.load_state_dict(memory.state_dict())
    copied, pickled = copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))
    assert set(memory.state_dict()) == {"bank", "written"}
    for one in (memory, other, copied, pickled):
        one.update(*images(4), seed=4)
        one.flush()
        assert torch.equal(one.bank, memory.bank) and torch.equal(one.written, memory.written)


def test_bad_arguments():
    for bad in ({"num_classes": 0}, {"dim": 1.5}, {"size": -1}, {"pixels": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be an integer >= 1"):
            PixelMemory(**{"num_classes": 2, "dim": 3, **bad})
    with pytest.raises(ValueError, match="7"):
        PixelMemory(K, D).update(torch.randn(1, D, 2, 2), torch.full((1, 2, 2), 7))
    narrow = torch.randn(1, D - 1, 2, 2), torch.zeros(1, 2, 2).long()
    with pytest.raises(ValueError, match=f"features have {D - 1} channels, the bank's rows dim = {D}"):
        PixelMemory(K, D).update(*narrow)
    with pytest.raises(ValueError, match=f"feats have {D - 1} channels; with_memory takes proj_dim = {D}"):
        loss_with_memory()(*narrow)


def loss_with_memory(**options):
    return PixelContrastLoss(
        sampling="all",
        with_memory=True,
        memory_size=SIZE,
        pixel_update_freq=PIXELS,
        proj_dim=D,
        num_classes=K,
        **options,
    ).double()


@pytest.mark.parametrize("denominator", ["negatives", "all"])
def test_the_loss_is_the_published_one_against_what_is_filled(denominator, backend, device):
    """No column is masked: no row of the bank is a pixel of this batch. Backward comes after the bank took its rows."""
    loss = loss_with_memory(denominator=denominator, backend=backend).to(device)
    memory = PixelMemory(K, D, SIZE, PIXELS).double()
    for step in range(5):
        features, labels = images(step, dtype=torch.float64)
        features.requires_grad_()
        value = loss(features.to(device), labels.to(device), seed=step).cpu()
        (gradient,) = torch.autograd.grad(value, features)
        rings = filled(memory)
        rows = torch.cat(list(rings.values()))
        classes = torch.cat([torch.full((len(r),), k) for (_, k), r in rings.items()])
        x = F.normalize(features, dim=1).movedim(1, 3)[labels != 255]
        if step == 0:
            assert value == 0 and not gradient.any() and not len(rows)
        else:
            expected = published(x, labels[labels != 255], rows, classes, denominator=denominator)
            torch.testing.assert_close(value, expected)
            torch.testing.assert_close(gradient, torch.autograd.grad(expected, features)[0])
        memory.update(features.detach(), labels, seed=step)


def test_only_training_fills_the_memory():
    loss = loss_with_memory().eval()
    for _ in range(2):
        assert loss(*images(0, dtype=torch.float64)) == 0
    loss.memory.flush()
    assert not loss.memory.written.any()


@pytest.mark.parametrize("backend", ["reference", None])
def test_a_second_forward_before_the_backward_of_the_first_changes_no_gradient(backend):
    """Never a gradient against other rows; a backend that reads the bank in backward raises."""
    grads = []
    for forwards in (2, 3):
        loss = loss_with_memory(backend=backend)
        batches = [images(step, dtype=torch.float64) for step in range(forwards)]
        losses = [loss(f.requires_grad_(), y, seed=step) for step, (f, y) in enumerate(batches)]
        losses[1].backward()
        grads.append(batches[1][0].grad)
    assert torch.equal(*grads) and grads[0].any()


def test_a_resumed_loss_goes_on():
    loss, resumed = loss_with_memory(), loss_with_memory()
    for step in range(2):
        loss(*images(step, dtype=torch.float64), seed=step)
    resumed.load_state_dict(loss.state_dict())
    for step in range(2, 4):
        batch = images(step, dtype=torch.float64)
        assert loss(*batch, seed=step) == resumed(*batch, seed=step)


@pytest.mark.parametrize("backend", ["reference", None])
def test_half_precision_embeddings_meet_a_single_precision_bank(backend):
    loss = loss_with_memory(backend=backend).float()
    for step in range(2):
        features, labels = images(step)
        features = features.bfloat16().requires_grad_()
        value = loss(features, labels)
    value.backward()
    assert value.isfinite() and value > 0 and features.grad.isfinite().all() and features.grad.any()


def test_one_graph():
    """torch.compile finds no break and no host sync."""
    torch.compiler.reset()
    loss = loss_with_memory().float()
    loss(*images(0), seed=0)
    expected = copy.deepcopy(loss)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for step in (1, 2):
        torch.testing.assert_close(compiled(*images(step), seed=1), expected(*images(step), seed=1))


@pytest.mark.gpu
def test_the_host_never_waits():
    loss = loss_with_memory().float().cuda()
    batches = [[t.cuda() for t in images(step)] for step in range(3)]
    torch.cuda.synchronize()
    with never_waiting():
        for features, labels in batches:
            loss(features.requires_grad_(), labels).backward()
