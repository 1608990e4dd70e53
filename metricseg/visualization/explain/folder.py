"""The folder of an explanation: nothing of a user's is overwritten, and an interrupted explanation goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from metricseg.utils.files import write_whole

FORMAT, VERSION = "metricseg explanation", 1
LIST = "explanation.json"


class ExplanationFolder:
    """A folder with a list of the files that were written into it.

    `done` holds, for each finished picture, what the index says of it.

    Args:
        path: made if it does not exist.
        key: what the explanation is of. An unfinished one of the same key goes on.
        overwrite: replace the files of another explanation, or of a finished one.

    Raises FileExistsError if `path` is a file, or a folder with files but without a list, or with an explanation that
    is not replaced.
    """

    def __init__(self, path: str | Path, key: dict[str, Any], overwrite: bool = False) -> None:
        self.path, self.key = Path(path), key
        self.files: list[str] = []
        self.done: dict[str, dict[str, Any]] = {}
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"--out is {path}, a file; it takes a folder")
        held = sorted(p.name for p in self.path.iterdir()) if self.path.exists() else []
        if held:
            found = self.read()
            if found is None:
                raise FileExistsError(
                    f"{path} holds {held[0]}, which explain did not write; --out takes a new folder, or an empty one"
                )
            if found["key"] == key and not found["finished"] and not overwrite:
                self.files, self.done = found["files"], found["done"]
            elif overwrite:
                self.remove(found["files"])
            else:
                raise FileExistsError(f"{path} holds an explanation; --overwrite true replaces it")
        self.save()

    def read(self) -> dict[str, Any] | None:
        """The list; None if there is none, or none that this version wrote."""
        try:
            found = json.loads((self.path / LIST).read_text(encoding="utf-8"))
            if found["format"] != FORMAT or found["version"] != VERSION:
                return None
            return {name: found[name] for name in ("key", "files", "done", "finished")}
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def remove(self, names: Iterable[str]) -> None:
        """Remove files of the list; what else is in the folder stays."""
        root = self.path.resolve()
        for name in names:
            if (path := (self.path / name).resolve()).is_relative_to(root):
                path.unlink(missing_ok=True)

    def save(self, finished: bool = False) -> None:
        """Write the list."""
        found = {"format": FORMAT, "version": VERSION, "finished": finished, "key": self.key}
        text = json.dumps({**found, "files": self.files, "done": self.done}, indent=1)
        write_whole(self.path / LIST, text.encode(), "the explanation")

    def write(self, contents: dict[str, bytes]) -> None:
        """Write files, which are in the list before they exist.

        Raises FileExistsError if one exists that is not in the list.
        """
        own = set(self.files)
        for name in contents:
            if name not in own and (self.path / name).exists():
                raise FileExistsError(f"{self.path / name} exists, and explain did not write it; move it, and go on")
        self.files += [name for name in contents if name not in own]
        self.save()
        for name, content in contents.items():
            write_whole(self.path / name, content, "the explanation")
