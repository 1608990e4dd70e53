"""predict_labels and confusion_matrix against interpolation, softmax, mean and argmax in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from predict_cases import CASES, Case, make_maps, make_segments, make_target, materialized
from threads import each_of
from tolerances import FLOOR_PARAMS, FLOORS, skip_unsupported
from torch import Tensor

import metricseg_kernels as mk

FAMILY = "predict"
CASE_PARAMS = [pytest.param(case, id=name) for name, case in CASES.items()]


def assert_largest(labels: Tensor, scores: Tensor, tolerance: float) -> None:
    """The class of the largest score, but for ties within the tolerance."""
    found = scores.gather(1, labels.long()[:, None])[:, 0]
    assert (scores.amax(1) - found <= tolerance).all()
    assert (labels == scores.argmax(1)).sum() >= 0.95 * labels.numel()


@pytest.mark.parametrize("case", CASE_PARAMS)
def test_labels_and_scores(case: Case, backend: str, device: str) -> None:
    maps = make_maps(case, device=device)
    p = materialized(case, maps)
    logits = maps[0] if len(maps) == 1 else maps
    labels, confidence, entropy = mk.predict_labels(
        logits, case.size, **case.options(), return_confidence=True, return_entropy=True, backend=backend
    )
    assert labels.dtype == (torch.uint8 if case.classes <= 256 else torch.int16)
    assert confidence.dtype == entropy.dtype == torch.float64 and labels.shape == (case.batch, *case.size)
    assert torch.equal(labels.long(), p.argmax(1))
    torch.testing.assert_close(confidence, p.amax(1), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(entropy, -torch.xlogy(p, p).sum(1), rtol=1e-10, atol=1e-12)
    alone = mk.predict_labels(logits, case.size, **case.options(), backend=backend)
    assert torch.equal(alone, labels)
    one = mk.predict_labels(logits, case.size, **case.options(), return_entropy=True, backend=backend)
    assert isinstance(one, tuple) and len(one) == 2 and torch.equal(one[1], entropy)


@pytest.mark.parametrize("case", CASE_PARAMS)
def test_confusion_matrix(case: Case, backend: str, device: str) -> None:
    maps = make_maps(case, device=device)
    for dtype in (torch.uint8, torch.int32, torch.int64):
        target = make_target(case, dtype, device)
        ignored = 255 if case.classes <= 255 else -1
        counts = mk.confusion_matrix(maps, target, ignore_index=ignored, **case.options(), backend=backend)
        labels = mk.predict_labels(maps, case.size, **case.options(), out_dtype=torch.int64, backend=backend)
        valid = target != ignored
        expected = torch.zeros((case.classes,) * 2, dtype=torch.int64, device=device)
        expected.index_put_((target[valid].long(), labels[valid]), torch.ones((), dtype=torch.int64, device=device),
                            accumulate=True)  # fmt: skip
        assert torch.equal(counts, expected)
    out = torch.full_like(counts, 7)
    assert mk.confusion_matrix(maps, target, ignore_index=ignored, **case.options(), out=out, backend=backend) is out
    assert torch.equal(out, expected + 7)


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@pytest.mark.parametrize("name", ["quarter", "scales-and-flips", "nhwc"])
def test_dtypes(name: str, dtype: torch.dtype, backend: str, device: str) -> None:
    """Against fp64 on the same rounded logits: labels but for ties, scores as close as plain PyTorch's in fp32."""
    skip_unsupported(backend, dtype)
    case = CASES[name]
    maps = make_maps(case, dtype, device)
    p = materialized(case, [m.double() for m in maps])
    labels, confidence, entropy = mk.predict_labels(
        maps, case.size, **case.options(), return_confidence=True, return_entropy=True, backend=backend
    )
    floor = FLOORS[torch.float64 if dtype == torch.float64 else torch.float32]
    assert confidence.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_largest(labels, p, floor)
    assert_largest(mk.predict_labels(maps, case.size, **case.options(), backend=backend), p, floor)
    torch.testing.assert_close(confidence.double(), p.amax(1), rtol=0, atol=floor)
    torch.testing.assert_close(entropy.double(), -torch.xlogy(p, p).sum(1), rtol=0, atol=5 * floor)


SEGMENTS = {
    "two-words": Case(((9, 40),), (36, 160), classes=40),
    "eight-rows": Case(((4, 37),), (35, 299), classes=3, flipped=True, layout="nhwc"),
    "corners": Case(((9, 7),), (33, 25), classes=7, align_corners=True, layout="strided"),
    "two-classes": Case(((3, 4),), (12, 16), classes=2),
    "very-many-classes": Case(((3, 4),), (7, 9), classes=1100, batch=1),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in SEGMENTS.items()])
def test_regions_in_which_few_classes_can_win(case: Case, backend: str, device: str) -> None:
    """Labels as of argmax, whatever stands out: small numbers, large ones, infinities and NaN at single cells."""
    if case.classes > 1000 and backend == "triton":
        pytest.skip("its loop over classes is the same for 40")
    z = make_segments(case, device=device)

    def labels_and_logits(maps: Tensor) -> tuple[Tensor, Tensor]:
        labels = mk.predict_labels(maps, case.size, **case.options(), out_dtype=torch.int64, backend=backend)
        large = F.interpolate(maps, case.size, mode="bilinear", align_corners=case.align_corners)
        return labels, large.flip(3) if case.flipped else large

    _, expected = labels_and_logits(z)
    for scale, offset in ((1.0, 0.0), (1e-200, 0.0), (1.0, -1e9), (2e307, 0.0)):
        labels, _ = labels_and_logits(scale * z + offset)
        assert_largest(labels, expected, 1e-6)
    z[:, :, 1, 1] = -torch.inf
    z[:, 0, 1, 2] = torch.inf
    z[:, -1, 2, 3] = torch.nan
    labels, large = labels_and_logits(z)
    known = ~large.isnan().any(1)  # F.interpolate has NaN of 0 * inf where one of both is not asked for
    assert torch.equal(labels[known], large.argmax(1)[known])
    shares = torch.zeros_like(z[:, :2])  # of the cells that are not finite, and of the NaN
    shares[:, 0, 1, 1:3] = shares[:, 1, 2, 3] = 1
    infinite, nan = labels_and_logits(shares)[1].unbind(1)
    assert (labels[(nan > 0) & (infinite == 0)] == case.classes - 1).all()


def test_infinite_and_nan_logits(backend: str, device: str) -> None:
    """A class of -inf is never predicted, borders included; a NaN is larger than all."""
    z = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(0)).to(device)
    z[:, 0] = -torch.inf
    labels, confidence = mk.predict_labels(z, (12, 20), return_confidence=True, backend=backend)
    expected = mk.predict_labels(z[:, 1:], (12, 20), return_confidence=True, backend=backend)
    if backend != "reference":  # where F.interpolate makes NaN of 0 * inf at borders
        assert torch.equal(labels, expected[0] + 1)
        torch.testing.assert_close(confidence, expected[1])
    z = z[:, 1:].clone()
    z[0, 2, 1, 2] = torch.nan
    labels, confidence = mk.predict_labels(z, (3, 5), return_confidence=True, backend=backend)
    assert labels[0, 1, 2] == 2 and confidence[0, 1, 2].isnan() and confidence.isnan().sum() == 1
    assert mk.predict_labels(z, (3, 5), backend=backend)[0, 1, 2] == 2
    averaged, confidence = mk.predict_labels([z, z], (3, 5), return_confidence=True, backend=backend)
    assert averaged[0, 1, 2] == 0 and confidence[0, 1, 2].isnan() and confidence.isnan().sum() == 1


def test_ties_go_to_the_lowest_class(backend: str, device: str) -> None:
    z = torch.zeros(1, 6, 4, 4, device=device)
    z[:, 3] = z[:, 5] = 1.0
    for maps in (z, [z, z]):
        labels, entropy = mk.predict_labels(maps, (9, 9), return_entropy=True, backend=backend)
        assert (labels == 3).all() and entropy.isfinite().all()
    assert (mk.predict_labels(torch.zeros_like(z), (9, 9), backend=backend) == 0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_dtype_of_labels(dtype: torch.dtype, backend: str, device: str) -> None:
    case = CASES["primes"]
    maps = make_maps(case, device=device)
    labels = mk.predict_labels(maps, case.size, out_dtype=dtype, backend=backend)
    assert labels.dtype == dtype
    assert torch.equal(labels.long(), materialized(case, maps).argmax(1))


@pytest.mark.parametrize("name", ["scales-and-flips", "quarter"])
def test_same_bits_with_any_number_of_threads(name: str, backend: str, device: str) -> None:
    case = CASES[name]
    maps, target = make_maps(case, torch.float32, device), make_target(case, device=device)
    found = []
    for _ in each_of(1, 2, 3, backend=backend):
        scores = mk.predict_labels(
            maps, case.size, **case.options(), return_confidence=True, return_entropy=True, backend=backend
        )
        found.append((*scores, mk.confusion_matrix(maps, target, **case.options(), backend=backend)))
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))


def test_compile_and_opcheck(backend: str, device: str) -> None:
    case = Case(((2, 3), (2, 3)), (4, 6), classes=3, flipped=(False, True))
    maps, target = make_maps(case, device=device), make_target(case, device=device)

    def evaluate(*maps: Tensor) -> tuple[Tensor, ...]:
        doubled = [2 * z for z in maps]
        labels, entropy = mk.predict_labels(doubled, case.size, **case.options(), return_entropy=True, backend=backend)
        return labels, entropy, mk.confusion_matrix(doubled, target, **case.options(), backend=backend)

    torch._dynamo.reset()
    compiled = torch.compile(evaluate, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(*maps), evaluate(*maps), strict=True):
        torch.testing.assert_close(got, expected)
    if backend != "reference":
        inputs, ops = (maps, [False, True], [0.5, 0.5], False), torch.ops.metricseg
        torch.library.opcheck(ops.predict_labels.default, (*inputs, [4, 6], torch.uint8, True, False, backend))
        torch.library.opcheck(ops.confusion_matrix.default, (*inputs, target, 255, backend))


def test_no_gradient(backend: str, device: str) -> None:
    z = torch.randn(1, 3, 4, 4, device=device, requires_grad=True)
    labels, confidence = mk.predict_labels(z, (8, 8), return_confidence=True, backend=backend)
    assert not labels.requires_grad and not confidence.requires_grad


def test_one_column_of_a_mirrored_map(backend: str, device: str) -> None:
    """Aligned corners read it at position 0 of the mirrored map."""
    maps = [torch.randn(2, 5, 3, w, device=device) for w in (4, 7)]
    for given in (maps, maps[:1]):
        options = {"align_corners": True, "backend": backend}
        found = mk.predict_labels(given, (3, 1), flipped=True, **options)
        expected = mk.predict_labels([m.flip(3) for m in given], (3, 1), **options)
        assert torch.equal(found, expected)
        counts = mk.confusion_matrix(given, expected.long(), flipped=True, **options)
        assert counts.diagonal().sum() == counts.sum() == 6


def test_export_of_any_size() -> None:
    class Predict(torch.nn.Module):
        def forward(self, logits: torch.Tensor) -> torch.Tensor:
            return mk.predict_labels(logits, (4 * logits.shape[2], 4 * logits.shape[3]))

    sizes = {"logits": {2: torch.export.Dim("h", min=2), 3: torch.export.Dim("w", min=2)}}
    exported = torch.export.export(Predict(), (torch.randn(1, 3, 4, 5),), dynamic_shapes=sizes).module()
    other = torch.randn(1, 3, 6, 3)
    assert torch.equal(exported(other), Predict()(other))


def test_compile_refuses_labels_out_of_range() -> None:
    z, target = torch.randn(1, 3, 4, 4), torch.full((1, 8, 8), 7)
    with pytest.raises(ValueError, match="target holds 64 labels .* for example 7"):
        torch.compile(mk.confusion_matrix, backend="eager", fullgraph=True)(z, target, backend="cpu")
