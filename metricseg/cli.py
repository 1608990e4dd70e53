"""`metricseg fit | validate | predict | bank | explain | flops --config NAME_OR_FILE`: Lightning's command line over
the task and the data of this package.

`--config camvid` takes the YAML of that name that ships with the package (`metricseg/configs`); any option of it can be
set again behind it, e.g. `--data.dataset.root DIR`. A `class_path` may name a module of the current directory.
`--ckpt_path runs/camvid/checkpoints/last.ckpt` resumes a run, or says what to evaluate.
This file imports nothing of the `train` extra, so that it can say what to install.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any


def expand(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the bare name of a packaged configuration behind `--config` or `-c` replaced by its file.

    Raises ValueError for a value that is neither a packaged name nor a file.
    """
    packaged = {f.name.removesuffix(".yaml"): str(f) for f in files("metricseg").joinpath("configs").iterdir()}
    out: list[str] = []
    for argument in arguments:
        prefix = "--config=" if argument.startswith("--config=") else ""
        if prefix or (out and out[-1] in ("--config", "-c")):
            name = argument.removeprefix(prefix)
            if name not in packaged and not Path(name).is_file():
                raise ValueError(
                    f"no configuration is called {name!r}; there are {', '.join(sorted(packaged))}, or a file's path"
                )
            argument = prefix + packaged.get(name, name)
        out.append(argument)
    if out[:1] == ["predict"]:  # the writer has them; a large folder's maps need not stay in memory
        out.insert(1, "--return_predictions=false")
    return out


def raised_here(error: BaseException) -> bool:
    """Whether this project's own code raised the error: then its message names the argument at fault."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].partition(".")[0] in ("metricseg", "metricseg_kernels", "__main__")


def main(arguments: Sequence[str] | None = None, **options: Any) -> Any:
    """Run the command line.

    With `arguments`, return Lightning's command line object, and raise errors. Without, act as the console script: take
    the process's arguments, return None (the exit status 0), and end the process with one line if the input is
    wrong.
    """
    if arguments is not None:
        from metricseg.training.cli import run

        return run(expand(arguments), **options)
    sys.path.append(os.getcwd())  # class_path finds your modules; last, so that none hides an installed one
    try:
        from metricseg.training.cli import run

        sys.argv[1:] = expand(sys.argv[1:])
        run(None)
    except ModuleNotFoundError as error:
        sys.exit(f'metricseg: {error}; the command line needs the train extra: pip install "metricseg[train]"')
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        if not raised_here(error):
            raise
        sys.exit(f"metricseg: {error}")


if __name__ == "__main__":
    main()
