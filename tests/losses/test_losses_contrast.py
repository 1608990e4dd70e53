"""The pixel contrast losses: ContrastiveSeg's formula, written anew, and every input that its code falls over."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from guard import never_waiting

from metricseg.losses import MarginContrastLoss, PixelContrastLoss, build_loss
from metricseg.losses.pixel_contrast import nearest

K, D, SIZE = 5, 8, (12, 16)
BOTH = pytest.mark.parametrize("make", [PixelContrastLoss, MarginContrastLoss])


def batch(kind="random", dtype=torch.float64):
    """Embeddings [2, D, 12, 16], labels [2, 48, 64], logits [2, K, 12, 16]."""
    generator = torch.Generator().manual_seed(0)
    feats = torch.randn(2, D, *SIZE, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(0, K, (2, 48, 64), generator=generator)
    labels[:, :6] = 255
    if kind == "one class":
        labels[labels != 255] = 3
    elif kind == "ignored":
        labels[:] = 255
    elif kind == "one image":
        labels[1] = 255
    elif kind == "each its own":
        labels = torch.arange(2 * 48 * 64).view(2, 48, 64)
    elif kind == "one odd pixel":
        labels[:] = 0
        labels[0, 0, 0] = 4
    return feats, labels, torch.randn(2, K, *SIZE, generator=generator)


def published(x, labels, y=None, other_labels=None, temperature=0.1, base_temperature=0.07, denominator="negatives"):
    """ContrastiveSeg's loss, by its formula; the mean is over the anchors for which it is defined."""
    if not len(x):
        return 0 * x.sum()
    same = labels[:, None] == (labels if y is None else other_labels)
    positive = same & ~torch.eye(len(x), dtype=torch.bool) if y is None else same
    counted = ~same if denominator == "negatives" else (positive | ~same)
    s = x @ (x if y is None else y).T / temperature
    s = s - s.amax(1, keepdim=True).detach()
    rest = (s.exp() * counted).sum(1, keepdim=True)
    log_prob = s - (rest + (s.exp() if denominator == "negatives" else 0)).log()
    defined = positive.any(1)
    losses = -(temperature / base_temperature) * torch.where(positive, log_prob, 0).sum(1)[defined]
    return (losses / positive.sum(1)[defined]).mean() if defined.any() else 0 * x.sum()


def euclidean(x, labels, margin=1.0, positive_margin=0.0, power=2, average="pairs"):
    same = labels[:, None] == labels
    self_ = torch.eye(len(x), dtype=torch.bool)
    d2 = (x[:, None] - x).square().sum(2)
    d = torch.where(d2 > 0, torch.where(d2 > 0, d2, 1).sqrt(), 0)
    total = 0 * x.sum()
    for terms in (((d - positive_margin).relu() ** power)[same & ~self_], ((margin - d).relu() ** power)[~same]):
        terms = terms[terms > 0] if average == "nonzero" else terms
        total = total + (terms.mean() if terms.numel() else 0)
    return total


def valid_rows(feats, labels):
    """Every pixel that has a label, of unit norm, by boolean masks and copies."""
    labels = F.interpolate(labels[:, None].double(), feats.shape[-2:])[:, 0].long().flatten()
    rows = F.normalize(feats.permute(0, 2, 3, 1).flatten(0, 2), dim=1)
    return rows[labels != 255], labels[labels != 255]


def same_with_gradient(ours, expected, feats):
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    (a,), (b,) = (torch.autograd.grad(v, feats) for v in (ours, expected))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def quiet(module, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return module(*arguments, **options)


KINDS = ["random", "one class", "ignored", "one image", "each its own", "one odd pixel"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("denominator", ["negatives", "all"])
def test_every_pixel_against_every_pixel(kind, denominator):
    feats, labels, _ = batch(kind)
    loss = PixelContrastLoss(
        sampling="all", denominator=denominator, num_classes=2**16, ignore_index=255, loss_weight=0.5
    )
    expected = 0.5 * published(*valid_rows(feats, labels), denominator=denominator)
    same_with_gradient(quiet(loss, feats, labels), expected, feats)


def balanced(x, labels, y=None, other_labels=None, temperature=0.1, denominator="negatives"):
    """`published` with base_temperature None: the rows of a class by their mean in the denominator; the mean over
    classes of the means over anchors, if they have positives."""
    y, other_labels = (x, labels) if y is None else (y, other_labels)
    losses, weights = [], []
    for i in range(len(x)):
        others = torch.arange(len(y)) != i if y is x else torch.ones(len(y), dtype=torch.bool)
        e = (y @ x[i] / temperature).exp()
        means = {
            int(k): (e * others)[other_labels == k].sum() / (other_labels == k).sum() for k in other_labels.unique()
        }
        rest = sum(mean for k, mean in means.items() if k != labels[i] or denominator == "all")
        positives = e[(other_labels == labels[i]) & others]
        if len(positives):
            losses.append(((rest + (positives if denominator == "negatives" else 0)).log() - positives.log()).mean())
            weights.append(1 / (labels == labels[i]).sum().double())
    return (torch.stack(losses) * torch.stack(weights)).sum() / sum(weights) if losses else 0 * x.sum()


@pytest.mark.parametrize("kind", ["random", "one class", "ignored", "one odd pixel"])
@pytest.mark.parametrize("denominator", ["negatives", "all"])
def test_balanced_classes(kind, denominator):
    feats, labels, _ = batch(kind)
    loss = PixelContrastLoss(0.1, None, denominator, sampling="all", balance="classes")
    same_with_gradient(quiet(loss, feats, labels), balanced(*valid_rows(feats, labels), denominator=denominator), feats)


def test_balanced_classes_of_a_memory():
    """Its rows are counted in the memory, the anchors among themselves."""
    feats, labels, _ = batch("random", torch.float32)
    loss = PixelContrastLoss(0.1, None, sampling="all", balance="classes", with_memory=True, memory_size=7,
                             num_classes=K, proj_dim=D)  # fmt: skip
    loss(feats, labels, seed=0)
    value, (rows, kinds) = loss(feats, labels, seed=1), loss.memory.rows()
    filled = kinds >= 0
    expected = balanced(*valid_rows(feats, labels), rows[filled], kinds[filled])
    torch.testing.assert_close(value, expected.float())


def test_classes_of_one_size_differ_by_a_constant():
    """n rows in each class: lower by log n, with the same gradient."""
    feats, labels, _ = batch()
    labels = torch.arange(12 * 16).remainder(K - 1).view(1, 12, 16).expand(2, -1, -1)
    alike, plain = (PixelContrastLoss(0.1, None, "all", sampling="all", balance=b) for b in ("classes", None))
    n = labels.numel() // (K - 1)
    same_with_gradient(alike(feats, labels) + math.log(n), plain(feats, labels), feats)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "form", [{}, {"average": "nonzero", "power": 1, "margin": 0.8, "positive_margin": 0.3}], ids=["squares", "nonzero"]
)
def test_margins_of_every_pixel(kind, form):
    feats, labels, _ = batch(kind)
    loss = MarginContrastLoss(sampling="all", num_classes=2**16, ignore_index=255, **form)
    expected = euclidean(*valid_rows(feats, labels), **form)
    same_with_gradient(quiet(loss, feats, labels), expected, feats)


@pytest.mark.parametrize("sampling", ["hard", "random", "semi_hard", "boundary"])
@pytest.mark.parametrize("kind", ["random", "one class", "one image"])
def test_sampled_pixels(sampling, kind):
    feats, labels, logits = batch(kind)
    loss = PixelContrastLoss(sampling=sampling, max_samples=60, max_views=7, temperature=0.2, base_temperature=None)
    rows, row_labels = loss.rows(feats, nearest(labels, SIZE), logits, seed=3)
    used = row_labels != -1
    slots = sum(len(image[image != 255].unique()) for image in labels)
    assert used.sum() == slots * min(60 // slots, 7)
    expected = published(rows[used], row_labels[used], temperature=0.2, base_temperature=0.2)
    same_with_gradient(quiet(loss, feats, labels, logits, seed=3), expected, feats)


def test_the_hard_half_is_what_the_prediction_gets_wrong():
    _, labels, logits = batch()
    small, predicted = nearest(labels, SIZE).flatten(), logits.argmax(1).flatten()
    # the embedding says whether its pixel is predicted right
    marked = torch.where(small == predicted, 1.0, -1.0).view(2, 1, *SIZE).expand(2, D, *SIZE)
    rows, row_labels = PixelContrastLoss(max_samples=60, max_views=6).rows(marked, small.view(2, *SIZE), logits, 0)
    for k in range(K):
        right = rows[row_labels == k][:, 0] > 0
        assert len(right) == 12 and right.sum() == 6


@BOTH
def test_labels_of_any_dtype_and_predictions_of_either_form(make):
    feats, labels, logits = batch()
    loss = make(max_views=9)
    value = loss(feats, labels, logits, seed=1)
    for kind in (torch.uint8, torch.int32):
        assert loss(feats, labels.to(kind), logits, seed=1) == value
    assert loss(feats, labels, logits.argmax(1), seed=1) == value
    assert loss(feats, nearest(labels, SIZE), logits, seed=1) == value
    large = F.interpolate(logits, scale_factor=4, mode="nearest")
    assert loss(feats, labels, large, seed=1) == value
    torch.testing.assert_close(loss(feats.contiguous(memory_format=torch.channels_last), labels, logits, seed=1), value)


@pytest.mark.parametrize("old", [1, 5, 12, 37, 513])
@pytest.mark.parametrize("new", [1, 3, 12, 37, 64, 129])
def test_nearest_is_that_of_interpolate(old, new):
    labels = torch.randint(0, 256, (2, old, new + 3), dtype=torch.uint8)
    expected = F.interpolate(labels[:, None].float(), (new, old), mode="nearest")[:, 0].byte()
    ours = nearest(labels, torch.Size((new, old)))
    assert ours.dtype == torch.uint8 and torch.equal(ours, expected)


@BOTH
@pytest.mark.parametrize("sampling", ["hard", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_huge_zero_and_duplicated_embeddings(make, sampling, dtype):
    """Values of 1e4 in fp16, whose squares overflow; norm 0; pixels at distance 0."""
    feats, labels, logits = batch()
    feats = feats.detach().sign().mul(1e4).to(dtype)
    feats[0, :, 2:6] = 0
    feats[1, :, 4:] = feats[1, :, 3:4]
    feats.requires_grad_()
    value = make(sampling=sampling, max_views=10)(feats, labels, logits)
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and feats.grad.isfinite().all()
    assert not feats.grad[0, :, 2:6].any()


@BOTH
@pytest.mark.parametrize("sampling", ["hard", "random", "semi_hard", "boundary", "all"])
def test_nothing_to_contrast_is_a_differentiable_zero(make, sampling):
    """A crop full of ignore, and classes smaller than a slot: the published code raises, or gives NaN."""
    for labels in (torch.full((2, 48, 64), 255), torch.full((0, 48, 64), 255)):
        feats = torch.randn(len(labels), D, *SIZE, requires_grad=True)
        value = quiet(make(sampling=sampling), feats, labels, torch.randn(len(labels), K, *SIZE))
        value.backward()
        assert value == 0 and not feats.grad.any()


@BOTH
def test_silence_is_broken_once(make):
    feats, labels, logits = batch("ignored")
    loss = make()
    with pytest.warns(UserWarning, match=f"{make.__name__} pulls nothing together in this batch"):
        loss(feats, labels, logits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(feats, labels, logits)
        make(max_views=5)(*batch())


@BOTH
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_pixels": 9999}, r"no class has more than 9999 labeled pixels in an image.* lower min_pixels \(now 9999"),
        ({"max_views": 9998}, r"more than 9998 labeled .* max_views \(now 9998\)"),
        ({"min_pixels": 0, "max_views": 1, "max_samples": 1}, "do any two rows have the same label"),
    ],
)
def test_reason_for_no_pairs(make, options, words):
    feats, labels, logits = batch()
    with pytest.warns(UserWarning, match=words):
        make(**options)(feats[:1], labels[:1], logits[:1])


@BOTH
def test_warmup_is_counted_in_training_and_saved(make):
    feats, labels, logits = batch()
    loss = make(max_views=9, warmup_iters=2)
    for done in (1, 2):
        value = loss(feats, labels, logits)
        assert value == 0 and not torch.autograd.grad(value, feats)[0].any()
        loss.eval()(feats, labels, logits)
        assert loss.iterations == done
        loss.train()
    resumed = make(max_views=9, warmup_iters=2)
    resumed.load_state_dict(loss.state_dict())
    for module in (loss, resumed):
        value = module(feats, labels, logits)
        assert value > 0 and torch.autograd.grad(value, feats)[0].any() and module.iterations == 3


@pytest.mark.parametrize(
    ("make", "sampling"),
    [
        (PixelContrastLoss, "hard"),
        (PixelContrastLoss, "all"),
        (MarginContrastLoss, "semi_hard"),
        (MarginContrastLoss, "boundary"),
    ],
)
def test_one_graph(make, sampling):
    """torch.compile finds no break and no host sync."""
    torch.compiler.reset()
    feats, labels, logits = batch(dtype=torch.float32)
    loss = make(sampling=sampling, max_views=9, warmup_iters=0)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected, value = loss(feats, labels, logits, seed=5), compiled(feats, labels, logits, seed=5)
    torch.testing.assert_close(value, expected)
    (a,), (b,) = (torch.autograd.grad(v, feats) for v in (value, expected))
    torch.testing.assert_close(a, b)


@BOTH
def test_a_seed_makes_the_choice(make):
    feats, labels, logits = batch()
    loss = make(max_views=9)
    assert loss(feats, labels, logits, seed=1) == loss(feats, labels, logits, seed=1)
    assert loss(feats, labels, logits, seed=1) != loss(feats, labels, logits, seed=2)
    torch.manual_seed(3)
    value = loss(feats, labels, logits)
    torch.manual_seed(3)
    assert loss(feats, labels, logits) == value


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "pixel_contrast", "temperature": 0}, "temperature is 0"),
        ({"name": "pixel_contrast", "temperature": math.nan}, "temperature is nan"),
        ({"name": "pixel_contrast", "base_temperature": -1.0}, "base_temperature is -1"),
        ({"name": "pixel_contrast", "denominator": "some"}, "denominator is 'some'"),
        ({"name": "pixel_contrast", "balance": "class"}, "balance is 'class'; it takes \"classes\" or None"),
        ({"name": "pixel_contrast", "sampling": "easy"}, "sampling is 'easy'"),
        ({"name": "pixel_contrast", "with_memory": True}, "num_classes"),
        ({"name": "pixel_contrast", "with_memory": True, "num_classes": 3, "memory_size": 0}, "size.*0"),
        ({"name": "pixel_contrast", "gather": "some"}, "gather is 'some'"),
        ({"name": "pixel_contrast", "tempreature": 0.1}, "tempreature"),
        ({"name": "margin_contrast", "margin": 0.0}, "margin.*0.0"),
        ({"name": "margin_contrast", "positive_margin": math.nan}, "positive_margin.*nan"),
        ({"name": "margin_contrast", "power": 3}, "power is 3"),
        ({"name": "margin_contrast", "average": "mean"}, "average is 'mean'"),
    ],
)
def test_bad_configuration(config, words):
    with pytest.raises(ValueError, match=words):
        build_loss(config)


FEATS, LABELS, LOGITS = batch(dtype=torch.float32)


@BOTH
@pytest.mark.parametrize(
    ("options", "arguments", "error", "words"),
    [
        ({}, (FEATS[0], LABELS, LOGITS), ValueError, r"feats must be \[B, D, h, w\], got shape \(8, 12, 16\)"),
        ({}, (FEATS, LABELS[:, None], LOGITS), ValueError, r"labels must be \[B, H, W\], got shape \(2, 1, 48, 64\)"),
        ({}, (FEATS, LABELS[:1], LOGITS), ValueError, "labels has a batch of 1, feats of 2"),
        ({}, (FEATS, LABELS.float(), LOGITS), TypeError, "labels must have dtype.*float32"),
        ({}, (FEATS, LABELS, LOGITS[:1]), ValueError, "predict has a batch of 1, feats of 2"),
        ({}, (FEATS, LABELS, LOGITS[0, 0]), ValueError, "predict must be"),
        ({}, (FEATS, LABELS, LOGITS[:, 0]), TypeError, "predict.*float32"),
        ({}, (FEATS, LABELS), ValueError, "sampling='hard' needs predict, got None"),
        ({}, (FEATS, None, LOGITS), TypeError, "labels must be a Tensor"),
        ({}, (FEATS.long(), LABELS, LOGITS), TypeError, "int64"),
        ({}, (FEATS, LABELS.to("meta"), LOGITS), ValueError, "labels is on meta, feats on cpu"),
        ({"sampling": "semi_hard"}, (FEATS, LABELS, LOGITS.argmax(1)), ValueError, "semi_hard.*logits"),
        ({"num_classes": 3}, (FEATS, LABELS, LOGITS), ValueError, "4"),
        ({"num_classes": 3, "sampling": "all"}, (FEATS, LABELS), ValueError, r"in \[0, 3\): for example 3"),
        (
            {"sampling": "all"},
            (FEATS, LABELS - 1),
            ValueError,
            r"labels holds .* neither ignore_index \(255\) nor in.*example -1",
        ),
        ({"max_samples": 0}, (FEATS, LABELS, LOGITS), ValueError, "max_samples.*0"),
        ({"max_views": 0}, (FEATS, LABELS, LOGITS), ValueError, "max_views.*0"),
        ({"backend": "cuda"}, (FEATS, LABELS, LOGITS), RuntimeError, "backend 'cuda'"),
    ],
)
def test_bad_calls(make, options, arguments, error, words):
    with pytest.raises(error, match=words):
        make(**{"max_views": 9, **options})(*arguments)


@pytest.mark.gpu
@BOTH
@pytest.mark.parametrize("sampling", ["hard", "random", "semi_hard", "boundary", "all"])
def test_the_host_never_waits(make, sampling):
    feats, labels, logits = (t.detach().cuda() for t in batch(dtype=torch.float32))
    loss = make(sampling=sampling, warmup_iters=1).cuda()
    loss(feats.requires_grad_(), labels, logits).backward()
    with never_waiting():
        loss(feats, labels, logits).backward()


def test_count_of_warm_up_is_saved_and_may_be_missing():
    loss = PixelContrastLoss(warmup_iters=9)
    loss.iterations += 5
    other = PixelContrastLoss(warmup_iters=9)
    other.load_state_dict(loss.state_dict())
    assert other.iterations == 5
    other.load_state_dict({})  # of an older version
    assert other.iterations == 5
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict({"iteration": torch.tensor(1)})
