"""The CUDA kernels of the predict family on the host: the tests of every backend, and what only a shim can show."""

from __future__ import annotations

from types import ModuleType

import cuda_host
import pytest
import torch
from cuda_host.fixtures import *  # noqa: F403
from predict_cases import CASES, Case, make_maps, make_target
from test_predict import (  # noqa: F401
    FAMILY,
    test_confusion_matrix,
    test_dtype_of_labels,
    test_dtypes,
    test_infinite_and_nan_logits,
    test_labels_and_scores,
    test_regions_in_which_few_classes_can_win,
    test_ties_go_to_the_lowest_class,
)

import metricseg_kernels as mk
from metricseg_kernels.predict import op, reference

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("classes", [3, 130])
def test_the_most_maps(classes: int, backend: str) -> None:
    """32 maps, the most there may be, of two sizes: in one walk, or in two with 64 KiB of shared memory."""
    case = Case(((2, 3), (3, 4)) * 16, (4, 5), classes=classes, batch=1, flipped=(False, True) * 16)
    maps = make_maps(case)
    found = mk.predict_labels(maps, case.size, **case.options(), return_entropy=True, backend=backend)
    expected = mk.predict_labels(maps, case.size, **case.options(), return_entropy=True, backend="reference")
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 5), (14, 20), (21, 20), (35, 20), (49, 20)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_rows_between_two_cells(size: tuple[int, int], align_corners: bool, backend: str) -> None:
    """As many label rows at once as lie between two cells: 1, 2 or 4, in parts where there are more."""
    z = torch.randn(2, 4, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for maps in (z, z[:, :, :1]):
        got, expected = (
            mk.predict_labels(maps, size, align_corners=align_corners, backend=name) for name in (backend, "reference")
        )
        assert torch.equal(got, expected)


@pytest.mark.parametrize("classes", [4, 200])
def test_labels_out_of_range(classes: int, shim: ModuleType, backend: str) -> None:
    """Their number and the largest, in whatever order blocks run: counts in shared memory, or in global memory."""
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(2, classes, 4, 5, generator=rng)
    inputs = op.Inputs([z], [False], [1.0], False)
    for bad in ([], [-7, -3], [-7, classes, 2**40]):
        target = torch.randint(0, classes, (2, 30, 300), generator=rng)
        target.view(-1)[[17 * i + 4000 * i for i in range(len(bad))]] = torch.tensor(bad, dtype=torch.int64)
        expected = reference.confusion(inputs, target, -1)
        for seed in (0, 1):
            shim.configure(2, cuda_host.SHARED, seed)
            counts, found = op._confusion_outputs(inputs.maps)
            op.kernels(backend).confusion_kernel(inputs, target, -1, counts, found)
            assert torch.equal(found, expected[1])
            assert counts.sum() == expected[0].sum() == target.numel() - len(bad)


@pytest.mark.parametrize("name", ["two-maps", "primes"])
def test_same_counts_in_any_order(name: str, shim: ModuleType, backend: str) -> None:
    case = CASES[name]
    maps, target = make_maps(case, torch.float32), make_target(case)
    found = []
    for seed in (0, 1, 2):
        shim.configure(2, cuda_host.SHARED, seed)
        found.append(mk.confusion_matrix(maps, target, **case.options(), backend=backend))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("barrier", "name"), [(0, "primes"), (1, "primes"), (2, "two-maps"), (4, "two-maps"), (5, "two-maps")]
)
def test_a_lost_barrier_is_found(barrier: int, name: str, shim: ModuleType, backend: str) -> None:
    """So the tests above show that none is missing: around counts in shared memory, and the rows of a tile."""
    case = CASES[name]
    shim.lose_barrier(barrier)
    with pytest.raises(RuntimeError, match="race in shared memory: thread"):
        mk.confusion_matrix(make_maps(case), make_target(case), **case.options(), backend=backend)


ASAN_SCRIPT = """
rng = np.random.default_rng(0)
none = None
for cells, size, K, count, dtype, acc in [((5, 7), (23, 29), 5, 1, "f4", "f4"), ((2, 3), (9, 150), 130, 1, "f8", "f8"),
                                          ((5, 7), (4, 9), 3, 2, "f2", "f4"), ((5, 7), (10, 7), 9, 32, "u2", "f4")]:
    maps = [rng.standard_normal((2, K, *cells)).astype("f4") for _ in range(count)]
    maps = [(z.view("u4") >> 16).astype("u2") if dtype == "u2" else z.astype(dtype) for z in maps]
    maps[-1] = np.asfortranarray(maps[-1])
    inputs = maps, [i % 2 == 1 for i in range(count)], [1 / count] * count, False
    for kind in "u1", "i2", "i4", "i8":
        labels = np.full((2, *size), 99, kind)
        scores = np.full((2, *size), -1, acc), np.full((2, *size), -1, acc)
        m.predict_kernel(*inputs, labels, *scores)
        alone = np.full((2, *size), 99, kind)
        m.predict_kernel(*inputs, alone, none, none)
        assert labels.max() < K and (count > 1 or (alone == labels).all())
        assert (scores[0] > 0).all() and (scores[0] <= 1.0001).all() and (scores[1] > -1e-5).all()
    counts, bad = np.full((K, K), -1, "i8"), np.full(2, -1, "f8")
    m.confusion_kernel(*inputs, rng.integers(0, K + 1, (2, *size)), 0, counts, bad)
    assert counts.sum() + bad[0] < 2 * size[0] * size[1] and bad[1] in (0, K) and (counts >= 0).all()
print("clean")
"""


def test_kernels_under_address_sanitizer(shim: ModuleType) -> None:
    cuda_host.run_sanitized("predict", ASAN_SCRIPT)
