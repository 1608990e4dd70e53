"""What the ops of the centers family take of memory: no tensor of the features' size but their gradient."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import centers_cases
import pytest
import torch
from centers_cases import Case, learning, make
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import metricseg_kernels as mk
from metricseg_kernels.centers import op

FAMILY = "centers"


class Watch(TorchDispatchMode):
    """Notes the elements of every tensor that comes into being, those inside of a backend's kernels included."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[int, str]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {t.untyped_storage().data_ptr() for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = function(*args, **(kwargs or {}))
        if "aten.set_" in str(function):  # how Triton's interpreter copies what it is given
            return out
        for t in pytree.tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in known:
                self.made.append((t.untyped_storage().nbytes() // t.element_size(), str(function)))
        return out

    def around(self, kernels: Any) -> SimpleNamespace:
        """The kernels of a backend, watched too: an op's own handler does not see into it."""

        def watched(kernel: Any) -> Any:
            def call(*args: Any) -> None:
                with self:
                    kernel(*args)

            return call

        return SimpleNamespace(**{n: watched(f) for n, f in inspect.getmembers(kernels) if n.endswith("_kernel")})

    def larger_than(self, elements: int) -> list[tuple[int, str]]:
        return [(size, name) for size, name in self.made if size > elements]


@contextmanager
def watching(backend: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    watch = Watch()
    kernels = watch.around(op.kernels(backend))
    with monkeypatch.context() as patch, watch:
        patch.setattr(op, "kernels", lambda _: kernels)
        yield watch


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.kernels
def test_nothing_but_the_gradient_is_larger_than_the_logits(
    layout: str, backend: str, device: str, monkeypatch
) -> None:
    """features -> center_similarity -> cross-entropy at label resolution; and the two kinds of class centers."""
    # fewer channels than pixels in a tile of Triton, which sums the gradient of the centers by parts of [K, C]
    case = Case("sizes", (2, 8, 16), 12, 5, layout=layout)
    inputs = learning(make(case, device=device), ("features", "centers", "logits"))
    target = inputs.labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    largest, features = max(inputs.logits.numel(), inputs.centers.numel()), inputs.features.numel()
    for labels in (None, inputs.labels):
        with watching(backend, monkeypatch) as watch:
            found = mk.center_similarity(inputs.features, inputs.centers, pull_labels=labels, backend=backend)
            logits, pull = (found, 0.0) if labels is None else found
            loss = mk.cross_entropy(logits, target, backend=backend) + pull
            assert not watch.larger_than(largest)
            torch.autograd.grad(loss, (inputs.features, inputs.centers))
        assert [size for size, _ in watch.larger_than(largest)] == [features], watch.larger_than(largest)
    for assignment in (inputs.logits, inputs.labels):
        with watching(backend, monkeypatch) as watch:
            centers = mk.class_centers(inputs.features, assignment, num_classes=5, backend=backend)
            assert not watch.larger_than(largest)
            torch.autograd.grad(centers.sum(), inputs.features)
        assert [size for size, _ in watch.larger_than(largest)] == [features], watch.larger_than(largest)


@pytest.mark.parametrize("job, layout, dtype", [
    ("loss", "nchw", "float32"), ("loss", "nhwc", "bfloat16"), ("soft", "nchw", "bfloat16"), ("soft", "nhwc", "float32"),
    ("hard", "nchw", "float32"),
])  # fmt: skip
def test_peak_memory(job: str, layout: str, dtype: str, fresh_processes) -> None:
    """The gradient of the features, those of K channels, the logits between them; and the threads' panels."""
    size, channels, classes = (1, 128, 192), 256, 19
    peak = fresh_processes.peak(centers_cases.memory_step, job, layout, dtype, size, channels, classes)
    itemsize, panels = 4 if dtype == "float32" else 2, (1 << 20) + (torch.get_num_threads() << 19)
    maps = {"loss": 2, "soft": 1, "hard": 0}[job]
    assert peak < itemsize * size[1] * size[2] * (channels + maps * classes) + panels
