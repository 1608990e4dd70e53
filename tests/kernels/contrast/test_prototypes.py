"""prototype_nca_loss against the published formula, one pixel at a time."""

from __future__ import annotations

import pytest
import torch
from tolerances import FLOOR_PARAMS, assert_as_good, assert_gradient, skip_unsupported
from torch import Tensor

import metricseg_kernels as mk

FAMILY = "contrast"
IGNORED = 255


def draw(pixels: int, segments: int, depth: int, classes: int, seed: int = 0) -> dict[str, Tensor]:
    """Embeddings of pixels and the means of their segments, a memory after them, some rows without a part."""
    rng = torch.Generator().manual_seed(seed)
    segment_ids = torch.randint(-1, segments + 2, (pixels,), generator=rng)  # -1: none; the last one: no prototype
    prototypes = torch.nn.functional.normalize(torch.randn(segments, depth, generator=rng, dtype=torch.float64))
    prototype_labels = torch.randint(-1, classes, (segments,), generator=rng)
    labels = prototype_labels[segment_ids.clamp(0, segments - 1)].clamp(min=0)
    labels[torch.rand(pixels, generator=rng) < 0.1] = IGNORED
    embeddings = torch.nn.functional.normalize(torch.randn(pixels, depth, generator=rng, dtype=torch.float64))
    return {"embeddings": embeddings, "labels": labels, "segment_ids": segment_ids, "prototypes": prototypes,
            "prototype_labels": prototype_labels}  # fmt: skip


def published(concentration: float, embeddings: Tensor, labels: Tensor | None, segment_ids: Tensor, prototypes: Tensor,
              prototype_labels: Tensor | None) -> Tensor:  # fmt: skip
    """The mean over pixels with a positive."""
    losses = []
    for i, own in enumerate(segment_ids.tolist()):
        s = concentration * (prototypes @ embeddings[i])
        if labels is None or prototype_labels is None:
            kinds = {j: "positive" if j == own else "negative" for j in range(len(prototypes))}
        elif labels[i] == IGNORED:
            continue
        else:
            present = [j for j in range(len(prototypes)) if prototype_labels[j] >= 0]
            kinds = {j: "positive" if prototype_labels[j] == labels[i] else "negative" for j in present}
            if own in kinds and kinds[own] == "positive" and list(kinds.values()).count("positive") > 1:
                del kinds[own]
        positive, negative = ([j for j, kind in kinds.items() if kind == k] for k in ("positive", "negative"))
        if own >= 0 and positive:
            total = s[positive].exp().sum()
            losses.append(-(total / (total + s[negative].exp().sum())).log())
    return torch.stack(losses).mean() if losses else (embeddings.sum() + prototypes.sum()) * 0


CASES = [(37, 11, 5, 3), (23, 7, 16, 7), (61, 29, 3, 2), (5, 1, 4, 1), (1, 3, 2, 2), (130, 70, 33, 19)]


@pytest.mark.parametrize("supervised", [True, False], ids=["labels", "unsupervised"])
@pytest.mark.parametrize("sizes", CASES, ids=lambda c: "-".join(map(str, c)))
def test_published_formula(sizes: tuple[int, int, int, int], supervised: bool, backend: str, device: str) -> None:
    given = draw(*sizes)
    if not supervised:
        given.update(labels=None, prototype_labels=None)
    leaves = [given["embeddings"].requires_grad_(), given["prototypes"].requires_grad_()]
    truth = published(7.0, **given)
    expected = torch.autograd.grad(truth, leaves)
    there = {k: v if v is None else v.detach().to(device) for k, v in given.items()}
    found = [there["embeddings"].requires_grad_(), there["prototypes"].requires_grad_()]
    loss = mk.prototype_nca_loss(**there, concentration=7.0, backend=backend)
    torch.testing.assert_close(loss.cpu(), truth, rtol=1e-10, atol=1e-12)
    for a, b in zip(torch.autograd.grad(loss, found), expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("concentration", [10.0, 1000.0])
@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@pytest.mark.kernels
def test_dtypes(dtype: torch.dtype, concentration: float, backend: str, device: str) -> None:
    """A concentration at which one maximum for both kinds of pairs would lose the positives."""
    skip_unsupported(backend, dtype)
    given = draw(130, 70, 33, 19)
    rounded = {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in given.items()}

    def run(backend: str, of: torch.dtype) -> tuple[Tensor, ...]:
        call = {k: v.to(of) if v.is_floating_point() else v for k, v in rounded.items()}
        leaves = [call["embeddings"].requires_grad_(), call["prototypes"].requires_grad_()]
        loss = mk.prototype_nca_loss(**call, concentration=concentration, backend=backend)
        return loss, *torch.autograd.grad(loss, leaves)

    got, plain, truth = run(backend, dtype), run("reference", dtype), run("reference", torch.float64)
    assert_as_good(got[0], plain[0], truth[0], dtype)
    for triple in zip(got[1:], plain[1:], truth[1:], strict=True):
        assert_gradient(*triple, dtype)


def test_one_segment_of_a_class_is_its_own_positive(backend: str, device: str) -> None:
    """And is left out if another has its label; a prototype of another label under the pixel's id is a negative."""
    mu = torch.eye(3, dtype=torch.float64, device=device)
    x = mu[:1].clone()
    ids = torch.zeros(1, dtype=torch.long, device=device)
    one = torch.tensor(0.0, dtype=torch.float64, device=device)

    def loss(label: int, labels: list[int]) -> Tensor:
        return mk.prototype_nca_loss(x, torch.tensor([label], device=device), ids, mu,
                                     torch.tensor(labels, device=device), concentration=1.0, backend=backend)  # fmt: skip

    e = torch.tensor(1.0, dtype=torch.float64, device=device).exp()
    torch.testing.assert_close(loss(4, [4, 5, 5]), ((e + 2) / e).log())
    torch.testing.assert_close(loss(4, [4, 4, 5]), (one + 2).log())
    torch.testing.assert_close(loss(5, [4, 5, 4]), (e + 2).log())
    assert loss(4, [4, 4, 4]) == 0  # no negative
    assert loss(3, [4, 4, 5]) == 0  # no positive


def test_memory_takes_no_gradient_and_nothing_gives_zero(backend: str, device: str) -> None:
    given = {k: v.to(device) for k, v in draw(20, 6, 4, 3).items()}
    given["embeddings"].requires_grad_()
    mk.prototype_nca_loss(**given, backend=backend).backward()
    assert given["embeddings"].grad.any() and given["prototypes"].grad is None
    for change in ({"labels": torch.full_like(given["labels"], IGNORED)},
                   {"segment_ids": torch.full_like(given["segment_ids"], -1)},
                   {"prototypes": given["prototypes"][:0], "prototype_labels": given["prototype_labels"][:0]}):  # fmt: skip
        x = given["embeddings"].detach().requires_grad_()
        loss = mk.prototype_nca_loss(**{**given, "embeddings": x, **change}, backend=backend)
        loss.backward()
        assert loss == 0 and not x.grad.any()


def test_bad_input() -> None:
    given = draw(8, 4, 3, 2)
    for change, error, message in (
        ({"segment_ids": given["segment_ids"].float()}, TypeError, "segment_ids must"),
        ({"segment_ids": given["segment_ids"][1:]}, ValueError, "segment_ids must have one entry per row of embeddings, 8, got 7"),
        ({"labels": None}, ValueError, "prototype_labels is given without labels"),
        ({"prototype_labels": None}, ValueError, "labels is given without prototype_labels"),
        ({"prototypes": given["prototypes"][:, 1:]}, ValueError, "prototypes must have the D of embeddings, 3, got 2"),
        ({"prototypes": given["prototypes"].float()}, TypeError, "prototypes must have the dtype of embeddings"),
        ({"concentration": 0.0}, ValueError, "concentration must be finite and > 0, got 0.0"),
        ({"reduction": "average"}, ValueError, "reduction must be"),
        ({"embeddings": given["embeddings"][0]}, ValueError, "embeddings must"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            mk.prototype_nca_loss(**{**given, **change})
