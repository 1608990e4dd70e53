"""Checkpoint files: written whole or not at all, and checked when they are read.

A read first compares the checksums that `torch.save` wrote; `torch.load` does not.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from metricseg.utils.files import UNFINISHED, write_whole


def check_whole(path: Path) -> None:
    """Raise FileNotFoundError if there is no checkpoint at `path`, and ValueError if it is damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"the checkpoint {path} is missing")
    try:
        with zipfile.ZipFile(path) as archive:
            folders = [entry.filename for entry in archive.infolist() if entry.external_attr & 0x10]
            damaged = folders[0] if folders else archive.testzip()  # torch reads no byte of what is marked as a folder
    except Exception as error:  # what zipfile raises depends on the byte
        raise ValueError(f"the checkpoint {path} is damaged: {error}") from error
    if damaged is not None:
        raise ValueError(f"the checkpoint {path} is damaged: {damaged} is not what was written")


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's reading and writing of checkpoint files, see above. A path with `://` is left to Lightning."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`; remove what killed writes left in its folder.

        Raises OSError, naming the file, if it can't be written; the previous checkpoint is still there.
        """
        if "://" in str(path) or storage_options is not None:
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        for leftover in path.parent.glob(f".*{UNFINISHED}"):
            leftover.unlink(missing_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_whole(path, content.getbuffer(), "the checkpoint")

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        """The checkpoint at `path`; raises as `check_whole` does, and ValueError if torch can't read it."""
        if "://" not in str(path):
            check_whole(Path(path))
        try:
            return super().load_checkpoint(path, *arguments, **options)
        except RuntimeError as error:
            raise ValueError(f"the checkpoint {path} can't be read: {error}") from error
