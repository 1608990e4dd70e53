"""The prototype bank of a retrieval system: rows in memory, one safetensors file, and an index of FAISS."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import metricseg_kernels as kernels
from metricseg.utils.files import write_whole

FORMAT, VERSION = "metricseg prototype bank", "1"


class BankRows(NamedTuple):
    """Prototypes [R, D] float32 of unit norm; their labels [R] int64; the number of the source picture of each [R]
    int64."""

    prototypes: Tensor
    labels: Tensor
    images: Tensor


class BankFile(NamedTuple):
    """Content of a file: rows, names of the source pictures, names of the classes (may be empty), other metadata."""

    rows: BankRows
    names: tuple[str, ...]
    classes: tuple[str, ...]
    more: dict[str, str]


def write_bank(
    path: str | Path,
    rows: BankRows,
    names: Sequence[str] = (),
    classes: Sequence[str] = (),
    more: Mapping[str, str] | None = None,
) -> None:
    """Write a bank, whole or not at all.

    Raises OSError, naming the file, if it can't be written.
    """
    metadata = {"format": FORMAT, "version": VERSION, "names": json.dumps(list(names))}
    metadata |= {"classes": json.dumps(list(classes)), **(more or {})}
    tensors = {name: value.detach().cpu().contiguous() for name, value in rows._asdict().items()}
    content = safetensors.torch.save(tensors, metadata)
    write_whole(Path(path), content, "the prototype bank")


def read_bank(path: str | Path, prototypes: bool = True) -> BankFile:
    """The bank at `path`. Without `prototypes`, these are not read, and are [0, D].

    Raises FileNotFoundError if there is none, and ValueError, naming the file, if it is damaged, of another version, or
    no prototype bank.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"the prototype bank {path} is missing")
    try:
        with safetensors.safe_open(str(path), "pt") as file:  # type: ignore[no-untyped-call]
            more = dict(file.metadata() or {})
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: part.get_shape() for name, part in parts.items()}
            wanted = [name for name in parts if prototypes or name != "prototypes"]
            found = {name: file.get_tensor(name) if name in wanted else part[:0] for name, part in parts.items()}
    except Exception as error:
        raise ValueError(f"the prototype bank {path} is damaged: {error}") from error
    if more.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is no prototype bank; `metricseg bank` writes them")
    if (version := more.pop("version", None)) != VERSION:
        raise ValueError(f"the prototype bank {path} has version {version}; this metricseg reads version {VERSION}")
    try:
        rows = BankRows(**found)
        names, classes = (tuple(json.loads(more.pop(key))) for key in ("names", "classes"))
        kinds = [value.dtype for value in rows]
        lengths = {shape[0] if shape else None for shape in shapes.values()}
        if kinds != [torch.float32, torch.int64, torch.int64] or len(lengths) > 1 or rows.prototypes.ndim != 2:
            raise ValueError(", ".join(f"{key} {value.dtype} {shapes[key]}" for key, value in found.items()))
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"the prototype bank {path} doesn't hold what it should: {error}") from error
    return BankFile(rows, names, classes, more)


def read_index(path: str | Path, bank: str | Path, rows: int, dim: int) -> Any:
    """The index of FAISS at `path`, which stays on disk, of the `rows` prototypes [R, D] of the file `bank`.

    Raises ImportError without FAISS, FileNotFoundError if there is no index, and ValueError, naming the file, if it
    can't be read or is not of these rows.
    """
    try:
        from faiss import IO_FLAG_MMAP_IFC, METRIC_INNER_PRODUCT, read_index
    except ImportError as error:
        raise ImportError(f"the index {path} needs FAISS 1.11 or later: pip install faiss-cpu") from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"the index {path} is missing")
    try:
        index = read_index(str(path), IO_FLAG_MMAP_IFC)
    except Exception as error:
        raise ValueError(f"the index {path} can't be read: {error}") from error
    for what, found, takes in (("D", index.d, dim), ("number of rows", index.ntotal, rows)):
        if found != takes:
            raise ValueError(f"the index {path} has {what} {found}; the prototype bank {bank} has {takes}")
    if index.metric_type != METRIC_INNER_PRODUCT:
        raise ValueError(f"the index {path} has metric_type {index.metric_type}; it takes faiss.METRIC_INNER_PRODUCT")
    return index


class PrototypeBank(nn.Module):
    """Rows to retrieve from. They are part of the state dict, whatever their number, unless they are from a file.

    Args:
        dim: D.
        num_classes: labels lie in [0, num_classes).
        file: of a bank. It takes the place of the rows of a state dict.
        index: file of an index of FAISS of the prototypes of `file`, which are not read then.

    Raises the errors of `read_bank` and `read_index`, and ValueError, naming the file, for another D, a label out of
    range, or an index without a file.
    """

    prototypes: Tensor
    labels: Tensor
    images: Tensor

    def __init__(
        self, dim: int, num_classes: int, file: str | Path | None = None, index: str | Path | None = None
    ) -> None:
        super().__init__()
        if index is not None and file is None:
            raise ValueError(f"index is {index}; it takes the file of its prototypes too, as bank")
        self.dim, self.num_classes, self.file = dim, num_classes, file
        self.index: Any = None  # searched in the place of the prototypes
        self.names: tuple[str, ...] = ()
        self.classes: tuple[str, ...] = ()
        self.weights: str | None = None  # checksum of the network that a file was built with
        self.precision: str | None = None  # of the trainer that built it
        empty = torch.zeros(0, dtype=torch.int64)
        for name, value in BankRows(torch.zeros(0, dim), empty, empty.clone())._asdict().items():
            self.register_buffer(name, value)
        if file is not None:
            content = read_bank(file, prototypes=index is None)
            self.fill(content.rows, content.names, f"the prototype bank {file}")
            if index is not None:
                self.index = read_index(index, file, len(self), dim)
            self.classes = content.classes
            self.weights, self.precision = content.more.get("weights"), content.more.get("precision")

    def __len__(self) -> int:
        return len(self.labels)

    def fill(self, rows: BankRows, names: Sequence[str] = (), what: str = "the prototype bank") -> None:
        """Replace all rows, and leave the index.

        Raises ValueError, naming `what`, for another D or a label out of range.
        """
        if rows.prototypes.shape[1] != self.dim:
            raise ValueError(f"{what} has prototypes of D = {rows.prototypes.shape[1]}; the network has {self.dim}")
        bad = rows.labels[(rows.labels < 0) | (rows.labels >= self.num_classes)]
        if len(bad):
            raise ValueError(f"{what} has label {int(bad[0])}; the network has {self.num_classes} classes")
        with torch.inference_mode(False):  # training goes on with these tensors
            for name, value in rows._asdict().items():
                setattr(self, name, value.to(self.labels.device).clone())
        self.names, self.index = tuple(names), None

    def nearest(self, directions: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(cosines [S, k'], rows [S, k']) of directions [S, D], k' = min(k, R), see `topk_similarity`."""
        bank = self.prototypes.to(directions) if self.index is None else self.index
        return kernels.topk_similarity(directions, bank, min(k, len(self)))

    def check_filled(self) -> None:
        """Raise ValueError if there are no rows."""
        if not len(self):
            raise ValueError(
                f"the prototype bank{f' {self.file}' if self.file else ''} is empty: there is nothing to retrieve. "
                "`metricseg bank` builds one, and --model.model.bank FILE loads it"
            )

    def check_prototypes(self) -> None:
        """Raise ValueError if an index is in their place."""
        if self.index is not None:
            raise ValueError(
                f"source segments are found by the prototypes of {self.file}, which are not read with an index: leave "
                "out --model.model.index"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for name in BankRows._fields:
            own = getattr(self, name)
            if self.file is not None:
                state_dict[prefix + name] = own
            elif prefix + name in state_dict:
                setattr(self, name, own.new_empty(state_dict[prefix + name].shape))
        if self.file is None:
            self.names = ()
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        """Arguments that print shows."""
        return f"dim={self.dim}, num_classes={self.num_classes}, rows={len(self)}"
