"""Banks of prototypes from the training set: in memory for the validations of `fit`, as a file, and back to the
segments they were made from."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from tqdm import tqdm

from metricseg.data.module import SegmentationData
from metricseg.models.bank import BankFile, BankRows, PrototypeBank, read_bank, write_bank
from metricseg.models.segsort import SegSort

EVERY = 50  # pictures between two writes of an unfinished bank


def check_classes(bank: PrototypeBank, classes: Sequence[str]) -> None:
    """Raise ValueError if the bank is from a file with classes of other names."""
    if bank.classes and bank.classes != tuple(classes):
        raise ValueError(
            f"the prototype bank {bank.file} has the classes {', '.join(bank.classes)}; the data set has "
            f"{', '.join(classes)}"
        )


class BankSegment(NamedTuple):
    """The segment that a row of a bank was made from.

    row: of the bank.
    mask: [h, w] bool, on the CPU, at the resolution of the embedding.
    distance: between its mean direction and the row; 0 on the device and in the precision that built the bank.
    """

    row: int
    mask: Tensor
    distance: float


def joined(parts: Sequence[BankRows], dim: int) -> BankRows:
    """All rows, on the CPU."""
    empty = BankRows(torch.zeros(0, dim), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    return BankRows(*(torch.cat([value.cpu() for value in values]) for values in zip(empty, *parts, strict=True)))


def rows_of_pictures(
    model: SegSort, trainer: L.Trainer, data: SegmentationData, pictures: Any, chosen: Sequence[int], first: int = 0
) -> Iterator[tuple[int, BankRows]]:
    """(number of pictures done, rows) per batch of the training pictures `chosen`, from number `first` on."""
    device, layout = next(model.parameters()).device, torch.channels_last
    done = first
    quiet = trainer.progress_bar_callback is None or not trainer.is_global_zero
    bar = tqdm(total=len(chosen), initial=first, desc="bank", unit="picture", leave=False, disable=quiet)
    with bar, torch.no_grad():
        for images, labels in data.bank_dataloader(pictures, chosen[first:]):
            images = images.to(device).contiguous(memory_format=layout)
            with trainer.precision_plugin.val_step_context():
                rows = model.bank_rows(trainer.precision_plugin.convert_input(images), labels.to(device), done)
            done += len(images)
            bar.update(len(images))
            yield done, rows


def refill(model: SegSort, trainer: L.Trainer) -> None:
    """Replace the bank of `model` by one of `model.pictures` training pictures, under the weights of now.

    Raises ValueError if the data are no `SegmentationData`, or none of the pictures has a labeled pixel.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if not isinstance(data, SegmentationData):
        raise ValueError(f"{type(model).__name__} validates with a bank of training pictures: fit a SegmentationData")
    pictures, chosen, names = data.bank_pictures(model.pictures)
    rows = joined([rows for _, rows in rows_of_pictures(model, trainer, data, pictures, chosen)], model.bank.dim)
    if not len(rows.labels):
        raise ValueError(f"none of the {len(chosen)} training pictures of the bank has a labeled pixel")
    model.bank.fill(rows, names)
    model.bank.weights = None


def fingerprint(model: SegSort) -> str:
    """A checksum of the weights without the bank, and of the clustering."""
    digest = hashlib.sha256(repr((model.grid, model.iterations, model.location)).encode())
    for name, value in model.state_dict().items():
        if not name.startswith("bank."):
            digest.update(
                name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()


def check_weights(model: SegSort) -> None:
    """Warn if the bank is from a file that was built with other weights."""
    if model.bank.weights not in (None, fingerprint(model)):
        warnings.warn(
            f"the prototype bank {model.bank.file} was built with other weights, or another clustering; `metricseg "
            "bank` builds one for these",
            stacklevel=2,
        )


def unfinished(path: Path, weights: str, names: Sequence[str]) -> BankFile | None:
    """Unfinished file of an interrupted `build` with these weights and pictures; None if there is nothing to go on
    from."""
    try:
        found = read_bank(path)
    except (FileNotFoundError, ValueError):
        return None
    return found if found.more.get("weights") == weights and found.names == tuple(names) else None


def build(
    model: SegSort,
    trainer: L.Trainer,
    data: SegmentationData,
    out: str | Path,
    classes: Sequence[str] = (),
    count: int = 0,
    overwrite: bool = False,
) -> BankFile:
    """Build a bank from `count` training pictures, 0 for all, and write it to `out`.

    If it is interrupted, `<out>.unfinished` holds what was done, and the same call goes on from there.

    Raises FileExistsError if `out` exists, unless `overwrite`; ValueError if no picture has a labeled pixel.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; --overwrite true replaces it")
    pictures, chosen, names = data.bank_pictures(count)
    partial, weights = out.with_name(f"{out.name}.unfinished"), fingerprint(model)
    more = {"weights": weights, "precision": str(trainer.precision)}
    left = unfinished(partial, weights, names)
    first, parts = (int(left.more["done"]), [left.rows]) if left else (0, [])
    written = first
    for done, rows in rows_of_pictures(model, trainer, data, pictures, chosen, first):
        parts.append(rows)
        if done - written >= EVERY and done < len(chosen):
            parts, written = [joined(parts, model.bank.dim)], done
            write_bank(partial, parts[0], names, classes, {**more, "done": str(done)})
    rows = joined(parts, model.bank.dim)
    if not len(rows.labels):
        raise ValueError(f"none of the {len(chosen)} training pictures has a labeled pixel: the bank would be empty")
    write_bank(out, rows, names, classes, more)
    partial.unlink(missing_ok=True)
    return BankFile(rows, tuple(names), tuple(classes), more)


def find_segments(
    model: SegSort, trainer: L.Trainer, data: SegmentationData, wanted: Collection[int]
) -> Iterator[tuple[int, list[BankSegment]]]:
    """(number of a source picture, a segment for each row of the bank of it), for the pictures `wanted` and those that
    share a batch with one.

    A bank holds no segments: the network and the clustering run again on the pictures, in the batches that built the
    bank, and the nearest mean direction in the picture is that of the row.

    Raises ValueError, naming the bank, if it was built with other weights, another clustering, in another precision or
    from other pictures, or has an index in the place of its prototypes.
    """
    bank, size = model.bank, data.eval_batch_size
    pictures, chosen, names = data.bank_pictures(len(bank.names))
    check_same(model, trainer, names)
    batches = sorted({number // size for number in wanted})
    members = [k for batch in batches for k in range(batch * size, min((batch + 1) * size, len(chosen)))]
    device, done = next(model.parameters()).device, 0
    quiet = trainer.progress_bar_callback is None or not trainer.is_global_zero
    bar = tqdm(total=len(members), desc="sources", unit="picture", leave=False, disable=quiet)
    with bar, torch.no_grad():
        for images, labels in data.bank_dataloader(pictures, [chosen[k] for k in members]):
            images = images.to(device).contiguous(memory_format=torch.channels_last)
            first = members[done]
            with trainer.precision_plugin.val_step_context():
                images = trainer.precision_plugin.convert_input(images)
                found, row_of = model.bank_segments(images, labels.to(device), first)
            for number in range(first, first + len(images)):
                own = (found.images == number).nonzero().flatten()
                segments = []
                for row in (bank.images == number).nonzero().flatten().tolist() if len(own) else []:
                    distances = (found.prototypes[own] - bank.prototypes[row]).norm(dim=1)
                    nearest = int(distances.argmin())
                    mask = row_of[number - first] == own[nearest]
                    segments.append(BankSegment(row, mask.cpu(), float(distances[nearest])))
                yield number, segments
            done += len(images)
            bar.update(len(images))


def check_same(model: SegSort, trainer: L.Trainer, names: Sequence[str]) -> None:
    """Raise ValueError if the bank has an index in the place of its prototypes, was built with other weights, another
    clustering, in another precision, or from pictures of other names than `names`. Their folders may have moved."""
    bank = model.bank
    bank.check_prototypes()
    if bank.weights not in (None, fingerprint(model)):
        raise ValueError(
            f"the prototype bank {bank.file} was built with other weights, or another clustering: its segments can't "
            "be found again. `metricseg bank` builds one for these"
        )
    if bank.precision not in (None, str(trainer.precision)):
        raise ValueError(
            f"the prototype bank {bank.file} was built in precision {bank.precision}: --trainer.precision "
            f"{bank.precision} finds its segments again, {trainer.precision} does not"
        )
    files, own = ([Path(name).name for name in found] for found in (names, bank.names))
    if files != own:
        different = [f"{b!r} for {a!r}" for a, b in zip(files, own, strict=False) if a != b]
        got = different[0] if different else f"{len(own)} pictures for {len(files)}"
        raise ValueError(f"the prototype bank {bank.file} was built from other training pictures: it has {got}")
