"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

UNFINISHED = ".unfinished"


def write_whole(path: Path, content: bytes | memoryview, what: str) -> None:
    """Write `content` beside `path` and rename it, so a killed process or a full disk leaves the previous file.

    Raises OSError that names the file and says that `what` is not written.
    """
    stage = path.with_name(f".{path.name}{UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(stage, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(stage, path)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; {what} is not written", str(path)) from error
    finally:
        stage.unlink(missing_ok=True)
