"""pytorch-metric-learning's wrappers and miners around our losses, against the same around its own, in fp64."""

import pickle
import warnings

import pytest
import torch
import torch.distributed as dist
from places import ROOT
from rank_processes import run_ranks

from metricseg import losses as ours

theirs = pytest.importorskip("pytorch_metric_learning.losses", reason="pytorch-metric-learning is not installed")
from pytorch_metric_learning import distances, miners, reducers  # noqa: E402
from pytorch_metric_learning.utils import loss_and_miner_utils as utils  # noqa: E402
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper  # noqa: E402

from metricseg.integrations import pml  # noqa: E402

LOSSES = {
    "supcon": ("SupConLoss", {}),
    "ntxent": ("NTXentLoss", {"temperature": 0.3}),
    "contrastive": ("ContrastiveLoss", {"pos_margin": 0.3, "neg_margin": 1.2}),
}
MINERS = {
    "multi-similarity": (lambda: miners.MultiSimilarityMiner(epsilon=0.4), 4),
    "pair margin": (lambda: miners.PairMarginMiner(0.5, 1.2), 4),
    "batch easy hard": (lambda: miners.BatchEasyHardMiner(), 4),
    "triplet margin": (lambda: miners.TripletMarginMiner(0.5), 3),
    "batch hard": (lambda: miners.BatchHardMiner(), 3),
    "angular": (lambda: miners.AngularMiner(), 3),
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*pulls nothing together", "ignore:DistributedLossWrapper is being used"
)


@pytest.fixture(params=LOSSES)
def both(request):
    """(theirs, ours), the same loss."""
    name, options = LOSSES[request.param]
    return getattr(theirs, name)(**options), getattr(ours, name)(**options)


@pytest.fixture
def kernel_only(monkeypatch):
    """Fail if a matrix of pairs is formed."""

    def form(*arguments):
        raise AssertionError("a matrix of pairs is formed")

    monkeypatch.setattr("metricseg.losses.listed_pairs.occurrences", form)


def batch(rows, seed, classes=5):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(rows, 6, dtype=torch.float64, generator=generator).requires_grad_()
    return embeddings, torch.randint(0, classes, (rows,), generator=generator)


def assert_same(modules, inputs, *arguments, **options):
    results = []
    for module in modules:
        value = module(inputs[0], *arguments, **options)
        results.append((value, *torch.autograd.grad(value, inputs)))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)
    return results[0][0]


@pytest.mark.parametrize("memory_size", [64, 24, 8], ids=["fills", "wraps", "memory of one batch"])
def test_cross_batch_memory(both, memory_size, kernel_only):
    """Ten batches, of unlike size: the memory fills, wraps, and holds a batch in two pieces."""
    modules = [theirs.CrossBatchMemory(loss, 6, memory_size=memory_size) for loss in both]
    values = []
    for step in range(10):
        embeddings, labels = batch((8, 5, 1, 7)[step % 4], step)
        values.append(assert_same(modules, [embeddings], labels))
    assert sum(value > 0 for value in values) > 5
    assert modules[0].queue_idx == modules[1].queue_idx
    torch.testing.assert_close(modules[0].embedding_memory, modules[1].embedding_memory)


def test_cross_batch_memory_of_some_rows(both, kernel_only):
    modules = [theirs.CrossBatchMemory(loss, 6, memory_size=20) for loss in both]
    for step in range(6):
        embeddings, labels = batch(9, step)
        assert_same(modules, [embeddings], labels, enqueue_mask=torch.arange(9) % 3 == 0)


@pytest.mark.parametrize("miner", MINERS)
def test_cross_batch_memory_with_a_miner(both, miner):
    make, entries = MINERS[miner]
    modules = [theirs.CrossBatchMemory(loss, 6, memory_size=20, miner=make()) for loss in both]
    for step in range(4):
        embeddings, labels = batch(9, step)
        assert_same(modules, [embeddings], labels)
        assert len(make()(embeddings, labels)) == entries


@pytest.mark.parametrize("miner", MINERS)
def test_miners(both, miner):
    """Of a batch, and against references; then without labels, which a list does not need."""
    for seed in range(3):
        (embeddings, labels), (ref_emb, ref_labels) = batch(24, seed), batch(30, seed + 50)
        with torch.no_grad():
            of_batch = MINERS[miner][0]()(embeddings, labels)
            of_both = MINERS[miner][0]()(embeddings, labels, ref_emb, ref_labels)
        assert assert_same(both, [embeddings], labels, of_batch) > 0
        assert assert_same(both, [embeddings, ref_emb], labels, of_both, ref_emb, ref_labels) > 0
        assert_same(both, [embeddings, ref_emb], None, of_both, ref_emb)


def test_two_lists_together(both):
    """CrossBatchMemory joins its own pairs and the caller's: some are listed twice."""
    embeddings, labels = batch(9, 0)
    pairs = utils.get_all_pairs_indices(labels)
    for extra in (pairs, utils.convert_to_triplets(pairs, labels)):
        modules = [theirs.CrossBatchMemory(loss, 6, memory_size=20) for loss in both]
        assert_same(modules, [embeddings], labels, extra)


def test_edges_of_a_list(both):
    """No pair, one kind of pair only, one positive left out, a list in another order, and one anchor's pairs."""
    embeddings, labels = batch(12, 0)
    none = torch.empty(0, dtype=torch.int64)
    a1, p, a2, n = utils.get_all_pairs_indices(labels)
    assert both[1](embeddings, labels, (none, none, none.float(), none.float())) == 0
    order = torch.randperm(len(a2), generator=torch.Generator().manual_seed(0))
    for pairs in (
        (none, none, a2, n),
        (a1, p, none, none),
        (a1[1:], p[1:], a2, n),
        (a1, p, a2[order], n[order]),
        (a1[a1 == 0], p[a1 == 0], a2[a2 == 0], n[a2 == 0]),
        (a1.int(), p.int(), a2, n),
    ):
        assert_same(both, [embeddings], labels, pairs)


def test_what_counts_as_all_pairs(kernel_only):
    """Not a list with one negative less, a pair twice, another label's pair, or two positives less in a row."""
    embeddings, labels = torch.randn(8, 3), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    a1, p, a2, n = utils.get_all_pairs_indices(labels)
    loss = ours.NTXentLoss()
    loss(embeddings, labels, (a1, p, a2, n))
    for pairs in (
        (a1, p, a2[1:], n[1:]),
        (a1, p, torch.cat([a2[:1], a2[:-1]]), torch.cat([n[:1], n[:-1]])),
        (torch.cat([a1[:1], a1]), torch.cat([p[:1], p]), a2, n),
        (a1, p, a2, n.roll(1)),
        (a1[1:], p[1:], a2, n),
    ):
        with pytest.raises(AssertionError, match="a matrix of pairs is formed"):
            loss(embeddings, labels, pairs)


def test_a_pair_of_both_kinds_is_refused():
    embeddings, labels = batch(4, 0)
    index = torch.arange(2)
    with pytest.raises(ValueError, match="lists a pair as positive and as negative"):
        ours.SupConLoss()(embeddings, labels, (index, index + 1, index, index + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_list_of_huge_zero_and_duplicated_embeddings(both, dtype):
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)).sign().mul(1e4).to(dtype)
    x[3], x[4] = 0, x[5]
    x.requires_grad_()
    a1, p, a2, n = utils.get_all_pairs_indices(torch.arange(12) // 3)
    value = both[1](x, None, (a1, p, a2[1:], n[1:]))
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and x.grad.isfinite().all() and not x.grad[3].any()


def test_self_supervised_loss(both, kernel_only):
    for symmetric in (True, False):
        (embeddings, _), (views, _) = batch(7, 0), batch(7, 1)
        modules = [theirs.SelfSupervisedLoss(loss, symmetric=symmetric) for loss in both]
        assert_same(modules, [embeddings, views], views)


def test_the_subclasses():
    """The types that DistributedLossWrapper asks for, with our arguments, state and refusals."""
    for name, options in LOSSES.values():
        loss = getattr(pml, name)(**options)
        assert isinstance(loss, getattr(theirs, name)) and isinstance(loss, getattr(ours, name))
        assert not loss.state_dict() and all(getattr(loss, key) == value for key, value in options.items())
        embeddings, labels = batch(9, 0)
        copy = pickle.loads(pickle.dumps(loss))
        assert_same([getattr(theirs, name)(**options), DistributedLossWrapper(copy)], [embeddings], labels)
        with pytest.raises(TypeError, match=rf"distance is SNRDistance\(...\); {name} has .* leave distance out"):
            getattr(pml, name)(distance=distances.SNRDistance())
        with pytest.raises(TypeError, match=r"reducer is SumReducer\(...\);"):
            getattr(ours, name)(reducer=reducers.SumReducer())
        with pytest.raises(TypeError, match="must extend BaseMetricLossFunction"):
            DistributedLossWrapper(getattr(ours, name)())
        with pytest.raises(ValueError, match="indices_tuple lists pairs of this rank, and gather is 'all'"):
            getattr(ours, name)(gather="all")(embeddings, labels, utils.get_all_pairs_indices(labels))


def test_no_positive_in_a_list_is_said(both):
    a1, p, a2, n = utils.get_all_pairs_indices(torch.arange(6) // 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        both[1](torch.randn(6, 3), None, (a1[:0], p[:0], a2, n))
    assert "does indices_tuple list a positive pair?" in str(caught[0].message)


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="no gloo")
def test_distributed_loss_wrapper_on_two_ranks(tmp_path, fresh_processes):
    printed = run_ranks(fresh_processes, 2, tmp_path, str(ROOT / "tests/integrations/pml_ranks.py"))
    assert printed.count("same: ") == 24
