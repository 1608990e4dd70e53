"""Two and four processes give the loss and the gradients of one with the whole batch."""

import warnings

import pytest
import ranks
import torch
import torch.distributed as dist
from rank_processes import run_ranks

from metricseg.losses.pixel_contrast import nearest
from metricseg.utils import distributed

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="no gloo")


def by_one(name, kind, dtype, world, net):
    """The loss of the whole batch by one process. Where pixels are sampled, each rank's share of it is on its own."""
    if not name.startswith("sampled"):
        return ranks.run(name, kind, dtype, slice(None), net)
    loss, (images, labels, predictions) = ranks.PIXELS[name](), ranks.batch(kind, dtype)
    shares = [
        loss.rows(net(image), nearest(label, image.shape[-2:]), prediction, 7)
        for image, label, prediction in zip(*(t.chunk(world) for t in (images, labels, predictions)), strict=True)
    ]
    return loss.compute(*(torch.cat(sides) for sides in zip(*shares, strict=True)))


def relative(ours, expected):
    """The error over the size; of something small, e.g. 0, the error itself."""
    return float((ours - expected).norm() / expected.norm().clamp(min=1e-2))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_give_what_one_process_gives(world, tmp_path, fresh_processes):
    """All cases in one launch, which takes longer than they do."""
    run_ranks(fresh_processes, world, tmp_path, ranks.__file__, str(tmp_path / "results.pt"))
    results = torch.load(tmp_path / "results.pt")
    wrong = {}
    for case, (values, grads) in results.items():
        net = ranks.network(case[2])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = by_one(*case, world, net)
        expected.backward()
        ours, theirs = (torch.cat([g.flatten() for g in side]) for side in (grads, [p.grad for p in net.parameters()]))
        if case[1] == "all ignored":
            assert expected == 0 and not theirs.any()
        errors = relative(values, expected.detach().expand(world)), relative(ours, theirs)
        if not max(errors) <= (1e-6 if case[2] == torch.float32 else 1e-12) or values.unique().numel() != 1:
            wrong[case] = errors
    assert len(results) == len(ranks.CASES) and not wrong


def test_without_a_process_group_gather_changes_nothing():
    assert distributed.ranks() == 1 and distributed.rank() == 0
    images, labels, predictions = ranks.batch("random", torch.float64)
    net = ranks.network(torch.float64)
    for name, make in ranks.PIXELS.items():
        gathering, alone = make(), make()
        alone.gather = None
        a, b = (m.double()(net(images), labels, predictions, seed=3) for m in (gathering, alone))
        assert a == b, name
