"""SegSort's loss against a slow one of lists, and its memory of earlier batches."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from guard import never_waiting

import metricseg_kernels as kernels
from metricseg.losses import PrototypeMemory, SegSortLoss, build_loss
from metricseg.losses.prototype_memory import own_buffers

FAMILY = "contrast"
D, CLASSES = 6, 4


def batch(seed=0, size=(9, 12), count=2, dtype=torch.float64):
    """Embeddings [B, D, h, w] and labels [B, 2 h, 2 w] in patches, with ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randint(0, CLASSES, (count, 1, 3, 4), generator=generator).double()
    labels = F.interpolate(patches, (2 * size[0], 2 * size[1]))[:, 0].to(torch.uint8)
    labels[:, :3] = 255
    return torch.randn(count, D, *size, generator=generator, dtype=torch.float64).to(dtype), labels


def slow_segments(embeddings, labels, ignored):
    """[(image, label, pixels [n] of one image)] and the unit rows [B, h w, D], in loops."""
    kinds = labels[:, ::2, ::2].long()
    clusters = kernels.spherical_kmeans(embeddings, valid=kinds != ignored, backend="reference")
    rows = embeddings.flatten(2).mT / embeddings.flatten(2).mT.norm(dim=2, keepdim=True)
    found = []
    for image in range(len(kinds)):
        for cluster in range(25):
            for kind in sorted(set(kinds[image].flatten().tolist()) - {ignored}):
                inside = ((clusters[image] == cluster) & (kinds[image] == kind)).flatten().nonzero().flatten()
                if len(inside):
                    found.append((image, kind, inside))
    return found, rows


def slow_loss(embeddings, labels, memory=(), concentration=10.0, ignored=255, alone=False):
    """(loss, prototypes, their labels), segment by segment; with `alone` every segment is a class of its own."""
    found, rows = slow_segments(embeddings, labels, ignored)
    own = [rows[image, inside].sum(0) / rows[image, inside].sum(0).norm() for image, _, inside in found]
    earlier = [pair for prototypes, kinds in memory for pair in zip(prototypes, kinds, strict=True)]
    prototypes = torch.stack([*own, *(row for row, _ in earlier)])
    kinds = [kind for _, kind, _ in found] + [kind for _, kind in earlier]
    if alone:
        kinds = list(range(len(kinds)))
    losses = []
    for number, (image, _, inside) in enumerate(found):
        same = [j for j, kind in enumerate(kinds) if kind == kinds[number] and j != number] or [number]
        others = [j for j, kind in enumerate(kinds) if kind != kinds[number]]
        e = (concentration * rows[image, inside] @ prototypes.T).exp()  # [n, P]
        losses.append(-(e[:, same].sum(1) / (e[:, same].sum(1) + e[:, others].sum(1))).log())
    return torch.cat(losses).mean(), torch.stack(own).detach(), [kind for _, kind, _ in found]


@pytest.mark.parametrize("alone", [False, True], ids=["labels", "segments"])
@pytest.mark.parametrize("memory", [0, 1, 2])
def test_loss_of_several_batches_is_that_of_loops(memory, alone):
    """Value and gradient; the memory holds the last batches, never the current one, and no unused row takes part."""
    options = {"supervision": "segments", "ignore_index": 255} if alone else {}
    loss, kept = SegSortLoss(D, memory=memory, capacity=150, **options).double(), []
    for step in range(4):
        embeddings, labels = batch(step)
        embeddings.requires_grad_()
        value = loss(embeddings, labels)
        (gradient,) = torch.autograd.grad(value, embeddings)
        expected, prototypes, kinds = slow_loss(embeddings, labels, kept[max(0, step - memory) :], alone=alone)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, embeddings)[0])
        kept.append((prototypes, kinds))
    _, held = loss.ring.rows()
    assert int((held >= 0).sum()) == sum(len(kinds) for _, kinds in kept[len(kept) - memory :])


def test_backends_agree(backend, device):
    embeddings, labels = batch(dtype=torch.float32)
    loss, expected = SegSortLoss(D, capacity=150, backend=backend).to(device), SegSortLoss(D, capacity=150).double()
    for _ in range(2):
        value, truth = loss(embeddings.to(device), labels.to(device)), expected(embeddings.double(), labels)
        torch.testing.assert_close(value.cpu().double(), truth, rtol=1e-5, atol=1e-6)


def test_regions_need_no_label():
    """Without memory the loss is the softmax over all prototypes; region 255 is a region; -1 is ignored."""
    embeddings, labels = batch()
    regions = labels.int() + 252
    regions[:, -2:] = -1
    loss = SegSortLoss(D, memory=0, capacity=150, supervision="segments").double()
    value = loss(embeddings, regions)
    expected, *_ = slow_loss(embeddings, regions, ignored=-1, alone=True)
    torch.testing.assert_close(value, expected)


def test_nothing_labeled_is_a_differentiable_zero():
    embeddings, labels = batch()
    embeddings.requires_grad_()
    loss = SegSortLoss(D, capacity=150).double()
    loss(*batch(1))
    value = loss(embeddings, torch.full_like(labels, 255))
    value.backward()
    assert value == 0 and not embeddings.grad.any()
    one = SegSortLoss(D, capacity=150).double()(embeddings, torch.zeros_like(labels))
    assert one == 0  # no negative


def test_segments_beyond_capacity_warn_once():
    loss = SegSortLoss(D, capacity=5).double()
    with pytest.warns(UserWarning, match=r"a batch has \d\d segments; capacity is 5"):
        assert loss(*batch()).isfinite()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(*batch())
    assert (loss.ring.rows()[1] >= 0).sum() == 10


def test_only_training_fills_the_memory_and_reset_empties_it():
    loss, fresh = SegSortLoss(D, capacity=150).double(), SegSortLoss(D, capacity=150).double()
    loss.eval()(*batch(1))
    assert loss.ring.pushed == 0
    loss.train()(*batch(1))
    assert loss(*batch(2)) != fresh(*batch(2))
    loss.reset()
    fresh.reset()
    assert loss(*batch(2)) == fresh(*batch(2))


def test_a_saved_loss_goes_on():
    loss = SegSortLoss(D, capacity=150).double()
    for step in range(3):
        loss(*batch(step))
    other = SegSortLoss(D, capacity=150).double()
    other.load_state_dict(loss.state_dict())
    assert set(loss.state_dict()) == {f"ring.{name}" for name in ("prototypes", "labels", "pushed")}
    others = [other, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))]
    for step in (3, 4, 5):
        value = loss(*batch(step))
        assert all(one(*batch(step)) == value for one in others)


def test_backward_after_the_memory_took_the_prototypes():
    """And after another forward: the gradient is that of the batch's own memory."""
    gradients = []
    for more in (0, 2):
        loss = SegSortLoss(D, memory=1, capacity=150).double()
        loss(*batch(0))
        embeddings, labels = batch(1)
        value = loss(embeddings.requires_grad_(), labels)
        for step in range(more):
            loss(*batch(step))
        value.backward()
        gradients.append(embeddings.grad)
    assert torch.equal(*gradients) and gradients[0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    loss, expected = SegSortLoss(D, capacity=150), SegSortLoss(D, capacity=150)
    for step in range(2):
        embeddings, labels = batch(step, dtype=dtype)
        value = loss(embeddings.requires_grad_(), labels)
        torch.testing.assert_close(value, expected(embeddings.detach().float(), labels), rtol=0.05, atol=0.02)
    value.backward()
    assert embeddings.grad.dtype == dtype and embeddings.grad.isfinite().all() and embeddings.grad.any()


def test_one_graph():
    """torch.compile finds no break and no host sync."""
    torch.compiler.reset()
    loss = SegSortLoss(D, capacity=150)
    expected = copy.deepcopy(loss)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for step in range(2):
        torch.testing.assert_close(
            compiled(*batch(step, dtype=torch.float32)), expected(*batch(step, dtype=torch.float32))
        )


def test_ring():
    ring = PrototypeMemory(2, 3, D)
    assert (ring.rows()[1] == -1).all() and ring.rows()[0].shape == (6, D)
    for step in range(3):
        ring.push(torch.full((3, D), float(step)), torch.tensor([step, step, -1]))
    rows, labels = ring.rows()
    assert labels.tolist() == [2, 2, -1, 1, 1, -1] and rows[:, 0].tolist() == [2, 2, 2, 1, 1, 1]
    ring.reset()
    assert (ring.labels == -1).all() and not ring.prototypes.any() and ring.pushed == 0
    assert "batches=2, capacity=3" in repr(ring)
    module = torch.nn.ModuleDict({"loss": SegSortLoss(D), "norm": torch.nn.BatchNorm2d(3)})
    assert own_buffers(module) == [f"loss.ring.{name}" for name in ("prototypes", "labels", "pushed")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 0}, "dim is 0; it takes an integer >= 1"),
        ({"memory": -1}, "memory is -1; it takes an integer >= 0"),
        ({"memory": True}, "memory is True"),
        ({"capacity": 1.5}, r"capacity is 1\.5"),
        ({"iterations": -1}, "iterations is -1"),
        ({"concentration": 0}, "concentration is 0; it takes a finite number > 0"),
        ({"concentration": float("nan")}, "concentration is nan"),
        ({"grid": (5, 0)}, r"grid is \(5, 0\); it takes \(rows, columns\)"),
        ({"location": 1}, "location is 1"),
        ({"supervision": "none"}, "supervision is 'none'; it takes one of labels, segments"),
        ({"ignore_index": "none"}, "ignore_index must be an int"),
        ({"grids": 1}, "its arguments are dim, concentration, memory, capacity, grid"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        build_loss({"name": "segsort", **options})


def test_bad_calls():
    embeddings, labels = batch()
    loss = SegSortLoss(D, num_classes=3).double()
    with pytest.raises(ValueError, match=f"embeddings have 5 channels; the memory takes dim = {D}"):
        loss(embeddings[:, :5], labels)
    with pytest.raises(ValueError, match=r"labels must be \[B, H, W\]"):
        loss(embeddings, labels[0])
    with pytest.raises(ValueError, match="3"):  # a label that is no class
        loss(embeddings, labels)
    assert loss.ring.pushed == 0


@pytest.mark.gpu
def test_the_host_never_waits():
    loss = SegSortLoss(D, capacity=150).cuda()
    batches = [[t.cuda() for t in batch(step, dtype=torch.float32)] for step in range(3)]
    torch.cuda.synchronize()
    with never_waiting():
        for embeddings, labels in batches:
            loss(embeddings.requires_grad_(), labels).backward()
