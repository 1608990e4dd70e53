"""The choice of anchors: the same on every backend, quotas exact, uniform within a group, without replacement."""

from __future__ import annotations

import pytest
import torch
from anchors_cases import CASES, NAMED, STRATEGIES, Case, arguments, make, published_quota, slots_of
from hypothesis import given, settings
from hypothesis import strategies as st

import metricseg_kernels as mk
from metricseg_kernels.anchors import reference
from metricseg_kernels.core import backends

FAMILY = "anchors"

by_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
by_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


@by_strategy
@by_case
@pytest.mark.kernels
def test_the_same_choice_on_every_backend(case: Case, strategy: str, backend: str, device: str) -> None:
    """Bit for bit: index, labels and count."""
    for seed in (1, -(2**63)):
        truth, got = (
            mk.sample_anchors(labels, predictions, seed=seed, backend=name, **arguments(case, strategy, confidence))
            for name, (labels, predictions, confidence) in (("reference", make(case)), (backend, make(case, device)))
        )
        for theirs, ours in zip(truth, got, strict=True):
            assert ours.dtype == torch.int64 and torch.equal(ours.cpu(), theirs)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_map(data: st.DataObject) -> None:
    """Shapes, classes, shares and capacities that no table thought of."""
    if (reason := backends.why_not("anchors", "cpu", "cpu")) is not None:
        pytest.skip(reason)
    number = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    case = Case(
        str(number(0, 10**9)), (number(1, 4), number(1, 20), number(1, 20)), classes=number(1, 9),
        max_samples=number(1, 200), max_views=number(1, 40), min_pixels=number(0, 20),
        labels=data.draw(st.sampled_from(["regions", "noise", "one"])), wrong=data.draw(st.floats(0, 1)),
    )  # fmt: skip
    labels, predictions, confidence = make(case)
    kwargs = arguments(case, data.draw(st.sampled_from(STRATEGIES)), confidence) | {"seed": number(-(2**63), 2**63 - 1)}
    truth, got = (mk.sample_anchors(labels, predictions, backend=b, **kwargs) for b in ("reference", "cpu"))
    assert all(torch.equal(a, b) for a, b in zip(truth, got, strict=True))


@by_strategy
@by_case
def test_what_is_promised(case: Case, strategy: str) -> None:
    """Quotas against loops over images and classes; distinct pixels of the right class, in order; the rest unused."""
    labels, predictions, confidence = make(case)
    index, sampled, count = mk.sample_anchors(
        labels, predictions, seed=7, backend="reference", **arguments(case, strategy, confidence)
    )
    used = int(count)
    assert index.shape == sampled.shape == (case.max_samples,)
    assert (index[used:] == -1).all() and (sampled[used:] == -1).all()
    index, sampled = index[:used].tolist(), sampled[:used].tolist()
    assert len(set(index)) == used
    flat = labels.flatten().tolist()
    assert [flat[i] for i in index] == sampled

    preferred = reference.preferred(strategy, labels, predictions, confidence, 0.7, 2, case.ignore_index)
    first = reference.first_group(labels, *preferred)
    first = [1] * len(flat) if first is None else first.flatten().tolist()
    slots = slots_of(case, labels)
    views = max(1, min(case.max_samples // max(1, len(slots)), case.max_views))
    pixels = case.shape[1] * case.shape[2]
    got: dict[tuple[int, int], list[int]] = {}
    for i in index:
        got.setdefault((i // pixels, flat[i]), []).append(i)
    assert list(got) == sorted(got)
    assert len(got) == min(len(slots), case.max_samples) and set(got) <= set(slots)
    for slot, chosen in got.items():
        preferred = sum(first[i] for i in slots[slot])
        rest = len(slots[slot]) - preferred
        wanted = (min(preferred, views), min(rest, views - min(preferred, views)))
        if strategy == "hard":
            wanted = published_quota(preferred, rest, views)
        taken = [first[i] for i in chosen]
        assert (sum(taken), len(taken) - sum(taken)) == wanted
        assert taken == sorted(taken, reverse=True)
        keys = [reference.keys(torch.tensor(7), reference.PIXELS, len(flat))[i] for i in chosen]
        for group in (keys[: wanted[0]], keys[wanted[0] :]):
            assert group == sorted(group)


def _inclusion(chosen: torch.Tensor, images: int, pixels: int) -> torch.Tensor:
    """[images, pixels]: 1 for chosen pixels."""
    return torch.zeros(images * pixels).scatter_(0, chosen[chosen >= 0], 1.0).view(images, pixels)


@pytest.mark.parametrize("wrong", [0, 24])
def test_uniform_within_a_group(wrong: int) -> None:
    """Chi-square over 2,000 draws, of pixels and of pairs of pixels; images of a batch draw for themselves."""
    images, pixels, views = 200, 60, 20
    labels = torch.zeros(images, 6, 10, dtype=torch.long)
    predictions = labels.clone()
    predictions.view(images, pixels)[:, :wrong] = 1
    chosen = torch.cat([
        _inclusion(mk.sample_anchors(labels, predictions, max_samples=images * views, max_views=views, seed=s).index,
                   images, pixels)
        for s in range(10)
    ])  # fmt: skip
    for group, n in ((chosen[:, :wrong], views // 2), (chosen[:, wrong:], views - (views // 2 if wrong else 0))):
        draws, size = group.shape
        if size == 0:
            continue
        assert (group.sum(1) == n).all()
        f = n / size
        expected = draws * f
        chi_square = (size - 1) / size * ((group.sum(0) - expected) ** 2 / (expected * (1 - f))).sum()
        assert abs(chi_square - (size - 1)) < 4 * (2 * (size - 1)) ** 0.5
        # pairs: f (n - 1) / (size - 1) of the draws hold both
        together = (group.T @ group)[torch.ones(size, size).triu(1).bool()] / draws
        p = f * (n - 1) / (size - 1)
        spread = (together - p).square().mean() / (p * (1 - p) / draws)
        assert abs(together.mean() - p) < 1e-4 and 0.8 < spread < 1.2


def test_too_few_candidates_are_made_good() -> None:
    """Images of which the cpu backend's first limit, three deviations beyond the quota, lets fewer than that through."""
    images, pixels, views, seed = 400, 1024, 64, 3
    keys = reference.keys(torch.tensor(seed), reference.PIXELS, images * pixels).view(images, pixels)
    limit = (views + 3 * (views**0.5 + 2.5)) / pixels * 2**64 - 2**63
    assert ((keys.double() <= limit).sum(1) < views).any()
    chosen = mk.sample_anchors(
        torch.zeros(images, 32, 32, dtype=torch.uint8), max_samples=images * views, max_views=views, num_classes=1,
        strategy="random", seed=seed,
    )  # fmt: skip
    smallest = keys.topk(views, largest=False).indices + pixels * torch.arange(images)[:, None]
    assert torch.equal(chosen.index, smallest.flatten())


def test_seeds_choose_independently() -> None:
    """Two seeds agree as often as chance has it, neighboring ones and ones that differ in high bits."""
    labels = torch.zeros(100, 6, 10, dtype=torch.long)
    draw = lambda seed: _inclusion(  # noqa: E731
        mk.sample_anchors(labels, max_samples=2000, max_views=20, strategy="random", seed=seed).index, 100, 60
    )
    first = draw(5)
    golden = reference.signed(reference.GOLDEN)
    for other in (6, 4, -5, 5 + 2**32, 5 + 2**62, 5 + golden):
        shared = (first * draw(other)).sum(1)  # 20 of 60 twice: 20 / 3 in common, variance 20/3 * 2/3 * 40/59
        assert abs(shared.mean() - 20 / 3) < 4 * (20 / 3 * 2 / 3 * 40 / 59 / 100) ** 0.5


def test_slots_are_chosen_uniformly() -> None:
    """More slots than samples: each as often as the others."""
    labels = torch.arange(24).repeat_interleave(3).view(2, 4, 9) % 12
    counts = torch.zeros(24)
    draws, n = 1500, 7
    for seed in range(draws):
        index, sampled, count = mk.sample_anchors(
            labels, max_samples=n, min_pixels=0, strategy="random", num_classes=12, seed=seed
        )
        slots = index // 36 * 12 + sampled
        assert count == n and len(set(slots.tolist())) == n
        counts[slots] += 1
    expected = draws * n / 24
    chi_square = 23 / 24 * ((counts - expected) ** 2 / (expected * (1 - n / 24))).sum()
    assert abs(chi_square - 23) < 4 * 46**0.5


def test_boundary_is_near_another_class() -> None:
    labels, predictions, confidence = make(NAMED["primes"])
    for radius in (1, 2, 5, 40):
        _, first = reference.preferred("boundary", labels, predictions, confidence, 0.7, radius, 255)
        for b, y, x in torch.cartesian_prod(torch.arange(3), torch.arange(0, 13, 3), torch.arange(0, 29, 3)).tolist():
            around = labels[b, max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
            if labels[b, y, x] != 255:
                assert first[b, y, x] == (len(set(around.flatten().tolist()) - {255}) > 1)


def test_semi_hard_is_wrong_or_unsure() -> None:
    labels, predictions, confidence = make(NAMED["primes"])
    confidence[0, 0, 0] = torch.nan
    wrong = predictions != labels
    for threshold in (0.0, 0.3, 1.1):
        unsure = (confidence < threshold) | confidence.isnan()
        for guess, expected in ((predictions, wrong | unsure), (None, unsure)):
            preferred = reference.preferred("semi_hard", labels, guess, confidence, threshold, 2, 255)
            assert torch.equal(reference.first_group(labels, *preferred), expected)


def test_seed_as_number_tensor_or_generator(backend: str, device: str) -> None:
    labels, predictions, _ = make(NAMED["even"], device)

    def draw(seed: int | torch.Tensor | None) -> torch.Tensor:
        kwargs = {"max_samples": 64, "min_pixels": 0, "num_classes": 5, "backend": backend}
        return mk.sample_anchors(labels, predictions, seed=seed, **kwargs).index

    assert torch.equal(draw(3), draw(torch.tensor(3, device=device)))
    assert not torch.equal(draw(3), draw(4))
    torch.manual_seed(0)
    first, second = draw(None), draw(None)
    torch.manual_seed(0)
    assert torch.equal(first, draw(None)) and not torch.equal(first, second)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_crop_full_of_ignore(strategy: str, backend: str, device: str) -> None:
    """One image of nothing but ignored pixels beside one with classes, and alone; the published code crashes."""
    labels, predictions, confidence = make(NAMED["even"], device)
    labels[0] = 255
    kwargs = arguments(NAMED["even"], strategy, confidence) | {"backend": backend, "seed": 1}
    index, _, count = mk.sample_anchors(labels, predictions, **kwargs)
    assert count > 0 and (index[: int(count)] >= labels[0].numel()).all()
    index, sampled, count = mk.sample_anchors(labels.fill_(255), predictions, ignore_label=-5, **kwargs)
    assert count == 0 and (index == -1).all() and (sampled == -5).all()
    features = torch.randn(2, 8, 16, 24, device=device, requires_grad=True)
    mk.gather_pixels(features, index, backend=backend).sum().backward()
    assert not features.grad.any()


def test_default_capacity(backend: str, device: str) -> None:
    """256 for uint8 labels, and 255 ignored; 1024 for wider ones, of which 255 may be a class."""
    labels = torch.full((1, 12, 12), 254, dtype=torch.uint8, device=device)
    kwargs = {"strategy": "random", "max_samples": 8, "backend": backend}
    assert (mk.sample_anchors(labels, **kwargs).labels == 254).all()
    labels = torch.full((1, 12, 12), 255, device=device)
    assert (mk.sample_anchors(labels, ignore_index=-1, **kwargs).labels == 255).all()
    assert (mk.sample_anchors(labels + 768, **kwargs).labels == 1023).all()
