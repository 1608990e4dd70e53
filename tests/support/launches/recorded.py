"""The launcher calls of a test run, to be compiled for other targets and by other versions of Triton.

METRICSEG_RECORD=FOLDER python -m pytest -p ttsem_plugin tests -k triton      records
METRICSEG_RECORD=FOLDER python -m launches recorded CAPABILITY                compiles
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from . import FAMILIES, Call

ALIGNMENT = 16  # bytes; all that a compilation depends on of an address


class Spec(NamedTuple):
    """A tensor without its values."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    offset: int  # bytes past a multiple of ALIGNMENT

    @classmethod
    def of(cls, tensor: Tensor) -> Spec:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.data_ptr() % ALIGNMENT)

    def make(self) -> Tensor:
        span = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        skipped = self.offset // self.dtype.itemsize
        return torch.zeros(skipped + max(span, 0), dtype=self.dtype).as_strided(self.shape, self.strides, skipped)


@contextlib.contextmanager
def recording(folder: str) -> Iterator[None]:
    """Every distinct call of a launcher goes to a file of this process in the folder."""
    calls: dict[bytes, None] = {}
    with contextlib.ExitStack() as stack:
        for family in FAMILIES:
            module = importlib.import_module(f"metricseg_kernels.{family}.triton")
            for name in [n for n in vars(module) if n.endswith("_kernel")]:
                stack.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, _recorded(family, name, getattr(module, name), calls))
        yield
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / f"{os.getpid()}.pickle").write_bytes(pickle.dumps(list(calls)))


def _recorded(family: str, name: str, launcher: Any, calls: dict[bytes, None]) -> Any:
    @functools.wraps(launcher)
    def launch(*args: Any) -> None:
        specs = pytree.tree_map_only(Tensor, Spec.of, args)
        calls[pickle.dumps((family, name, torch.get_float32_matmul_precision(), specs))] = None
        launcher(*args)

    return launch


def calls() -> Iterator[Call]:
    folder = Path(os.environ["METRICSEG_RECORD"])
    distinct = dict.fromkeys(
        call for file in sorted(folder.glob("*.pickle")) for call in pickle.loads(file.read_bytes())
    )
    for i, call in enumerate(distinct):
        family, name, precision, specs = pickle.loads(call)
        dtypes = {s.dtype for s in pytree.tree_leaves(specs, is_leaf=_is_spec) if _is_spec(s)}
        half = bool(dtypes & {torch.bfloat16, torch.float16})
        exact = torch.float64 in dtypes or (precision == "highest" and not half)
        # exact products of sizes that only tests have: a row without channels spills most, in fp64 a list of neighbors
        spilled = 4096 if torch.float64 in dtypes else 1024 if exact else 0
        yield Call(f"{family} {name} {i}", functools.partial(_replay, family, name, specs), precision,
                   may_spill=spilled)  # fmt: skip


def _is_spec(node: Any) -> bool:
    return isinstance(node, Spec)


def _replay(family: str, name: str, specs: Any) -> None:
    args = pytree.tree_map(lambda s: s.make() if _is_spec(s) else s, specs, is_leaf=_is_spec)
    getattr(importlib.import_module(f"metricseg_kernels.{family}.triton"), name)(*args)
