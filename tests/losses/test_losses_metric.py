"""The losses of embeddings against pytorch-metric-learning itself, in fp64, gradients included."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F

from metricseg.losses import ContrastiveLoss, NTXentLoss, SupConLoss, build_loss

LOSSES = [
    pytest.param(SupConLoss, {}, id="supcon"),
    pytest.param(SupConLoss, {"temperature": 0.5}, id="supcon-0.5"),
    pytest.param(NTXentLoss, {}, id="ntxent"),
    pytest.param(NTXentLoss, {"temperature": 0.3}, id="ntxent-0.3"),
    pytest.param(ContrastiveLoss, {}, id="contrastive"),
    pytest.param(ContrastiveLoss, {"pos_margin": 0.6, "neg_margin": 1.3}, id="contrastive-margins"),
]
LABELS = {
    "random": [3, 0, 3, 1, 4, 0, 0, 3, 2, 1, 1, 4, 0],
    "large and negative": [-1, 255, -1, 2**40, 255, -7, 2**40],
    "one class": [1] * 6,
    "each its own": list(range(7)),
    "one pair": [0, 1, 2, 0, 3],
    "two": [0, 0],
    "two apart": [0, 1],
    "one": [4],
}
OTHERS = {
    "random": [0, 1, 2, 3, 4, 0, 1, 2],
    "one class": [1, 1, 1],
    "none in common": [10, 11, 12],
    "one row": [0],
}


def embeddings(count, seed, dim=6):
    return torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def compare(loss, options, inputs, labels, ref_labels=None):
    """Ours and theirs: value and the gradient of every input."""
    theirs = pytest.importorskip("pytorch_metric_learning.losses")
    results = []
    for module in (getattr(theirs, loss.__name__)(**options), loss(**options)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = module(inputs[0], labels, None, *([inputs[1], ref_labels] if len(inputs) > 1 else []))
        grads = torch.autograd.grad(value, inputs, allow_unused=True)
        results.append((value, *(torch.zeros_like(i) if g is None else g for g, i in zip(grads, inputs, strict=True))))
    for expected, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, torch.as_tensor(expected, dtype=ours.dtype), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("loss", "options"), LOSSES)
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_a_batch_with_itself(loss, options, labels):
    compare(loss, options, [embeddings(len(labels), 0)], torch.tensor(labels))


@pytest.mark.parametrize(("loss", "options"), LOSSES)
@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("labels", ["random", "one class"])
def test_a_batch_with_references(loss, options, labels, others):
    labels = LABELS[labels]
    inputs = [embeddings(len(labels), 0), embeddings(len(others), 1)]
    compare(loss, options, inputs, torch.tensor(labels), torch.tensor(others))


@pytest.mark.parametrize(("loss", "options"), LOSSES)
def test_references_with_the_same_labels(loss, options):
    """The very tensor `labels` says that embedding i and reference i are one item; a copy of it does not."""
    labels = torch.tensor(LABELS["random"])
    inputs = [embeddings(len(labels), 0), embeddings(len(labels), 1)]
    compare(loss, options, inputs, labels, labels)
    compare(loss, options, inputs, labels, labels.clone())


def test_a_lone_pair_is_a_pair():
    """Theirs is 0 where there is at most one positive and one negative pair in all."""
    inputs = embeddings(1, 0), embeddings(2, 1)
    value = ContrastiveLoss(neg_margin=3.0)(inputs[0], torch.tensor([0]), None, inputs[1], torch.tensor([0, 1]))
    d = torch.cdist(*(F.normalize(x) for x in inputs))[0]
    torch.testing.assert_close(value, d[0] + 3 - d[1])


@pytest.mark.parametrize(("loss", "options"), LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_a_larger_batch(loss, options, seed):
    labels = torch.randint(0, 7, (90,), generator=torch.Generator().manual_seed(seed))
    compare(loss, options, [embeddings(90, seed, 17)], labels)


@pytest.mark.parametrize("loss", [SupConLoss, NTXentLoss])
def test_an_underflowing_probability_keeps_its_gradient(loss):
    """At temperature 0.01 in fp32 the ratio of exponentials is below the smallest number: their NTXentLoss stops at 87."""
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1e-3]], requires_grad=True)
    value = loss(temperature=0.01)(x, torch.tensor([0, 0, 1]))
    value.backward()
    torch.testing.assert_close(value, torch.tensor((200 + math.log(2)) / 2), rtol=1e-5, atol=0)
    assert x.grad.abs().max() > 1e-2


@pytest.mark.parametrize("loss", [SupConLoss, NTXentLoss, ContrastiveLoss])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_huge_zero_and_duplicated_embeddings(loss, dtype):
    """Values of 1e4 in fp16, whose squares overflow; norm 0; d = 0."""
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)).sign().mul(1e4).to(dtype)
    x[3] = 0
    x[4] = x[5]
    x.requires_grad_()
    value = loss()(x, torch.arange(12) // 3)
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and x.grad.isfinite().all() and not x.grad[3].any()


@pytest.mark.parametrize("loss", [SupConLoss, NTXentLoss, ContrastiveLoss])
def test_one_graph(loss):
    """torch.compile finds no break and no host sync."""
    torch.compiler.reset()
    x, labels = torch.randn(12, 5), torch.arange(12) // 3
    compiled = torch.compile(loss(), fullgraph=True, backend="aot_eager")
    for arguments in ((x, labels), (x, labels, None, x.flip(0), labels)):
        torch.testing.assert_close(compiled(*arguments), loss()(*arguments))


@pytest.mark.gpu
@pytest.mark.parametrize("loss", [SupConLoss, NTXentLoss, ContrastiveLoss])
def test_labels_on_another_device(loss):
    """SelfSupervisedLoss leaves its labels on the CPU."""
    x, labels = torch.randn(12, 5, device="cuda"), torch.arange(12) // 3
    torch.testing.assert_close(loss()(x, labels), loss()(x, labels.cuda()))
    there = labels.cuda()
    torch.testing.assert_close(loss()(x, labels, None, x.flip(0), labels), loss()(x, there, None, x.flip(0), there))


@pytest.mark.parametrize("loss", [SupConLoss, NTXentLoss, ContrastiveLoss])
def test_no_positive_is_said_once(loss):
    module, x = loss(), embeddings(4, 0)
    with pytest.warns(UserWarning, match="pulls nothing together"):
        module(x, torch.arange(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(x, torch.arange(4))
        loss()(x, torch.tensor([0, 0, 1, 1]))


@pytest.mark.parametrize("loss", [SupConLoss, NTXentLoss, ContrastiveLoss])
def test_two_views_under_one_label_tensor(loss):
    """They are no pairs, by pytorch-metric-learning's rule, and the warning says so."""
    x, labels = embeddings(4, 0), torch.arange(4)
    with pytest.warns(
        UserWarning, match=r"ref_labels is the tensor labels itself, .* pass ref_labels=labels\.clone\(\)"
    ):
        loss()(x, labels, None, x.flip(0), labels)
    with pytest.warns(UserWarning, match="do any two rows have the same label"):
        loss()(x, labels, None, x.flip(0), labels + 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss()(x, labels, None, x.flip(0) + 1, labels.clone())


X, Y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((X, Y, (Y, Y)), ValueError, r"indices_tuple has 2 entries; it takes a miner's pairs .* or triplets"),
        ((X, Y, Y), TypeError, "indices_tuple is a Tensor; it takes a miner's pairs"),
        ((X, Y, (Y, Y, [0])), TypeError, "n of indices_tuple is list"),
        ((X, Y, (Y, Y, X[0])), TypeError, r"n of indices_tuple is torch.float32 \(3,\); it takes a vector of integers"),
        ((X, Y, (Y, Y, Y + 3)), ValueError, "n of indices_tuple has values from 3 to 4; it takes indices of 4 rows"),
        ((X, Y, (Y - 1, Y, Y)), ValueError, "a of indices_tuple has values from -1 to 0"),
        ((X, Y, (Y, Y, Y[:3], Y)), ValueError, "indices_tuple has 3 anchors for 4 rows of pairs"),
        ((X, Y, (Y, Y, Y), X.double(), Y), TypeError, "ref_emb has dtype torch.float64, embeddings torch.float32"),
        ((X, Y, (Y, Y, Y), X[:, :2], Y), ValueError, "ref_emb must have the D of embeddings, 3, got 2"),
        ((X, Y[:3]), ValueError, "labels must have one entry per row of embeddings, 4, got 3"),
        ((X, Y[None]), ValueError, r"labels must be \[N\], got shape \(1, 4\)"),
        ((X[0], Y), ValueError, r"embeddings must be \[N, D\], got shape \(3,\)"),
        ((X, Y.float()), TypeError, "labels must be integers, got torch.float32"),
        ((X, None), TypeError, "labels must be a Tensor, got NoneType"),
        ((X.long(), Y), TypeError, "int64"),
        ((X, Y, None, X), ValueError, "ref_emb and ref_labels go together"),
        ((X, Y, None, None, Y), ValueError, "ref_emb and ref_labels go together"),
        ((X, Y, (Y, Y, Y), None, Y), ValueError, "ref_emb and ref_labels go together"),
        ((X, Y, None, X[:, :2], Y), ValueError, "D of anchors, 3, got 2"),
        ((X, Y, None, X.double(), Y), TypeError, "dtype of anchors"),
        ((X, Y, None, X[:3], Y), ValueError, "ref_labels must have one entry per row of ref_emb, 3, got 4"),
    ],
)
def test_bad_calls(arguments, error, words):
    for name in ("supcon", "ntxent", "contrastive"):
        with pytest.raises(error, match=words):
            build_loss(name)(*arguments)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "supcon", "temperature": 0}, "temperature.*0"),
        ({"name": "ntxent", "temperature": float("nan")}, "temperature.*nan"),
        ({"name": "contrastive", "neg_margin": -1.0}, "margin.*-1"),
        ({"name": "supcon", "gather": "some"}, "gather is 'some'"),
        ({"name": "supcon", "distance": object()}, r"distance is object.*SupConLoss has CosineSimilarity\(\) and Avg"),
        (
            {"name": "ntxent", "reducer": object()},
            r"reducer is object.*MeanReducer\(\) in its kernel: leave reducer out",
        ),
    ],
)
def test_bad_configuration(config, words):
    with pytest.raises(ValueError, match=words):
        build_loss(config)(X, Y)
