"""Tests of the cpu backend of contrast alone: tiles, panels, sets that are not copied, vector widths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from contrast_cases import CASES, FORMS, NAMED, Case, against_reference, call, learning, make, options
from threads import each_of
from widths import by_width, run_at

import metricseg_kernels as mk
from metricseg_kernels.contrast import cpu
from metricseg_kernels.core import backends
from metricseg_kernels.engines.row_pairs import cpu as panels
from metricseg_kernels.engines.row_pairs import cpu_products, cpu_sides

pytestmark = pytest.mark.skipif(
    backends.why_not("contrast", "cpu", "cpu") is not None, reason=str(backends.why_not("contrast", "cpu", "cpu"))
)


@pytest.mark.parametrize(
    ("sorted_bytes", "own"),
    [(cpu_sides.SORTED_BYTES, False), (0, False), (cpu_sides.SORTED_BYTES, True), (0, True)],
    ids=["sorted", "unsorted", "own-products", "sorted-in-parts"],
)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
@pytest.mark.parametrize("form", FORMS)
def test_many_small_tiles(form: str, case: Case, sorted_bytes: int, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases are smaller than a tile; here a tile is smaller than the cases."""
    if case.columns is None and sorted_bytes == 0:
        pytest.skip("a set with itself is always sorted")
    monkeypatch.setattr(panels, "BLOCK", 16)
    monkeypatch.setattr(cpu, "ITSELF_IN_FORWARD", 16)
    monkeypatch.setattr(panels, "SMALL", 5)
    monkeypatch.setattr(panels, "PANEL_BYTES", 2000)
    monkeypatch.setattr(cpu_sides, "SORTED_BYTES", sorted_bytes)
    monkeypatch.setattr(cpu_sides, "SORTED_ROWS", 48)
    monkeypatch.setattr(cpu_products, "use_own_products", lambda dim: own)
    for dtype in (torch.float64, torch.float32):
        against_reference(form, case, dtype, "cpu", "cpu")


def test_a_set_with_itself_forms_half_of_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums, and then the gradient, from the tiles on and above the diagonal; positives from those with any."""
    monkeypatch.setattr(panels, "BLOCK", 16)
    monkeypatch.setattr(cpu, "ITSELF_IN_FORWARD", 16)
    monkeypatch.setattr(panels, "SMALL", 16)
    formed: list[tuple[int, int]] = []
    tile = panels.Products.tile
    monkeypatch.setattr(
        panels.Products, "tile", lambda self, x, y: formed.append((x.start, y.start)) or tile(self, x, y)
    )
    x = torch.nn.functional.normalize(torch.randn(160, 8), dim=1).requires_grad_()
    labels = torch.arange(160) % 10
    loss = mk.pixel_contrast_loss(x, labels, backend="cpu")
    diagonal = [(i, i) for i in range(0, 160, 16)]
    upper = [(i, j) for i in range(0, 160, 16) for j in range(i, 160, 16)]
    assert [t for t in upper if t not in diagonal] == [t for t in formed[: len(upper) - 10]]  # a class to a tile
    assert formed[len(upper) - 10 :] == diagonal
    formed.clear()
    loss.backward()
    assert formed == upper


def test_a_set_of_one_tile_forms_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward makes the gradient from the products at hand."""
    formed: list[int] = []
    put_product = cpu_products.put_product
    monkeypatch.setattr(cpu_products, "put_product", lambda x, *rest: formed.append(len(x)) or put_product(x, *rest))
    x = torch.nn.functional.normalize(torch.randn(160, 8), dim=1)
    for temperature in (0.1, 0.001):  # one bound for all rows, or complete rows
        mk.pixel_contrast_loss(
            x.requires_grad_(), torch.arange(160) % 10, temperature=temperature, backend="cpu"
        ).backward()
        assert formed == [160]
        formed.clear()


@pytest.mark.parametrize("columns", [None, 190], ids=["self", "two-sets"])
@pytest.mark.parametrize("average", ["pairs", "nonzero"])
def test_classes_beyond_the_margin_are_left_alone(
    average: str, columns: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panels, "BLOCK", 16)
    rng = torch.Generator().manual_seed(0)
    centers = 3 * torch.randn(6, 8, generator=rng, dtype=torch.float64)

    def rows(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(-1, 6, (n,), generator=rng)
        return centers[labels] + 0.1 * torch.randn(n, 8, generator=rng, dtype=torch.float64), labels

    x, y = rows(150), rows(columns) if columns else (None, None)
    answers = []
    farther = panels.Pairs.farther
    monkeypatch.setattr(panels.Pairs, "farther", lambda *a: answers.append(farther(*a)) or answers[-1])
    found = []
    for backend in ("reference", "cpu"):
        leaves = [t.clone().requires_grad_() for t in (x[0], y[0]) if t is not None]
        loss = mk.margin_contrast_loss(
            leaves[0], x[1], leaves[1] if columns else None, y[1], average=average, backend=backend
        )
        found.append([loss, *torch.autograd.grad(loss, leaves)])
    assert sum(answers) > 30
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_rows_of_any_norm_beside_a_row_without_positives() -> None:
    """One bound serves all rows of a set with itself, also where some have no positive."""
    case = NAMED["some-ignored"]
    sets = make(case, torch.float64)
    labels = sets.anchor_labels.clone()
    labels[:5] = torch.arange(100, 105)
    found = []
    for backend in ("reference", "cpu"):
        s = learning(sets._replace(anchor_labels=labels))
        loss = call("negatives", s, **options(case, "negatives"), backend=backend)
        found.append(torch.autograd.grad(loss, s.anchors)[0])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-13)
    assert found[0][:5].any()


def test_runs_of_groups() -> None:
    """Each row of a group is in one run, complete with its group; runs stay under SMALL where groups do."""
    for counts in ([], [3], [0, 1], [5, 300, 2, 2], [0, 250, 6, 1, 256, 257], [7, 100, 100, 56, 1]):
        groups = torch.arange(-1, len(counts) - 1).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
        side = panels.Side(torch.zeros(len(groups), 1), None, groups, None)
        runs = list(panels.runs_of_groups(side))
        inside = [row for begin, end in runs for row in range(begin, end)]
        assert inside == list(range(counts[0] if counts else 0, len(groups)))
        for begin, end in runs:
            assert begin < end
            assert end - begin <= panels.SMALL or len(groups[begin:end].unique()) == 1
            assert end == len(groups) or groups[end - 1] != groups[end]


def test_own_products_only_where_they_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "library_is_avx2", lambda: False)
    assert not cpu_products.use_own_products(256)
    monkeypatch.setattr(cpu_products, "library_is_avx2", lambda: True)
    assert cpu_products.use_own_products(cpu_products.OWN_DIM) and not cpu_products.use_own_products(
        cpu_products.OWN_DIM - 1
    )


def test_the_library_keeps_to_avx2_on_amd() -> None:
    cpu_info = Path("/proc/cpuinfo")
    if not cpu_info.exists() or os.environ.get("METRICSEG_SIMD"):
        pytest.skip("the processor can't be read here")
    text = cpu_info.read_text()
    amd = "AuthenticAMD" in text and all(f"avx512{part}" in text for part in ("f", "bw", "dq", "vl"))
    assert cpu_products.library_is_avx2() == (amd and torch.backends.mkl.is_available())


@pytest.mark.parametrize("own", [False, True], ids=["library", "own"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rows", [1, 255, 256, 257, 300, 513, 1000])
def test_a_square_is_its_own_mirror_image(
    rows: int, dtype: torch.dtype, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_products, "use_own_products", lambda dim: own)
    x = torch.randn(rows, 70, dtype=dtype)
    out = torch.full((rows, rows + 16), 7.0, dtype=dtype)
    cpu_products.put_square(x, out[:, :rows])
    torch.testing.assert_close(out[:, :rows].double(), x.double() @ x.double().T, rtol=1e-5, atol=1e-4)
    assert out[:, rows:].eq(7).all()
    below = torch.arange(rows)[:, None] // cpu_products.STRIPE > torch.arange(rows) // cpu_products.STRIPE
    assert torch.equal(out[:, :rows][below], out[:, :rows].T[below])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("columns", [None, 1500], ids=["self", "two-sets"])
def test_own_products_give_the_same_bits_with_any_number_of_threads(
    form: str, columns: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_products, "use_own_products", lambda dim: True)
    x, y = torch.randn(1300, 70) / 8, None if columns is None else torch.randn(columns, 70) / 8
    labels = torch.arange(1500) % 7
    found = []
    for _ in each_of(1, 2, 3):
        leaves = [t.clone().requires_grad_() for t in (x, y) if t is not None]
        sets = leaves[0], labels[:1300], *((leaves[1], labels) if columns else (None, None))
        options = {} if form == "margin" else {"denominator": form}
        function = mk.margin_contrast_loss if form == "margin" else mk.pixel_contrast_loss
        loss = function(*sets, **options, backend="cpu")
        found.append([loss, *torch.autograd.grad(loss, leaves)])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def compare_all() -> None:
    """Every case of the table in the vector width that METRICSEG_SIMD names, with the products of that width."""
    cpu_products.use_own_products = lambda dim: True
    for form in FORMS:
        for case in CASES:
            for dtype in (torch.float32, torch.float64):
                against_reference(form, case, dtype, "cpu", "cpu")


@by_width
def test_narrower_vectors(width: str, fresh_processes: object) -> None:
    run_at(fresh_processes, width, "test_cpu_contrast", "compare_all")
