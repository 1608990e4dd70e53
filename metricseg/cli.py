"""`metricseg fit | validate | predict | bank | explain | flops --config NAME_OR_FILE`: Lightning's command line over
the task and the data of this package. `metricseg doctor | bench | completion` need no extra.

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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SUBCOMMANDS = ("fit", "validate", "predict", "bank", "explain", "flops")
COMPLETION = """\
_metricseg() {
  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"
  if [ "$COMP_CWORD" = 1 ]; then
    COMPREPLY=($(compgen -W "%(commands)s" -- "$word"))
  elif [ "$before" = --config ] || [ "$before" = -c ]; then
    COMPREPLY=($(compgen -W "%(configs)s" -- "$word") $(compgen -f -- "$word"))
  elif [ "${COMP_WORDS[1]}" = bench ]; then
    COMPREPLY=($(compgen -W "--classes --logits --labels --batch --dtype --device --losses --help" -- "$word"))
  elif [ "${COMP_WORDS[1]}" = completion ]; then
    COMPREPLY=($(compgen -W "bash zsh" -- "$word"))
  else
    COMPREPLY=($(compgen -W "--config --ckpt_path --data.dataset.root --model.model.weights --help" -- "$word")
               $(compgen -f -- "$word"))
  fi
}
complete -o filenames -F _metricseg metricseg
"""


def packaged() -> dict[str, str]:
    """The configurations that ship with the package: their names and files."""
    return {f.name.removesuffix(".yaml"): str(f) for f in files("metricseg").joinpath("configs").iterdir()}


def doctor(arguments: Sequence[str]) -> int:
    """`metricseg doctor`: see metricseg/doctor.py."""
    if arguments:
        asked = set(arguments) <= {"-h", "--help"}
        print("usage: metricseg doctor\n\nPrint the install, the machine, and a test of every op on its devices.",
              file=sys.stdout if asked else sys.stderr)  # fmt: skip
        return 0 if asked else 2
    print("metricseg doctor", flush=True)  # before seconds of imports
    from metricseg.doctor import main

    return main()


def bench(arguments: Sequence[str]) -> int:
    """`metricseg bench`: see metricseg/bench.py."""
    from metricseg.bench import main

    return main(arguments)


def completion(arguments: Sequence[str]) -> int:
    """`metricseg completion bash`: a script for the shell to read, `eval "$(metricseg completion bash)"`."""
    if list(arguments) not in (["bash"], ["zsh"]):
        print('usage: eval "$(metricseg completion bash)", or zsh', file=sys.stderr)
        return 2
    if arguments[0] == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    print(COMPLETION % {"commands": " ".join((*SUBCOMMANDS, *TOOLS)), "configs": " ".join(sorted(packaged()))}, end="")
    return 0


TOOLS = {"doctor": doctor, "bench": bench, "completion": completion}


def expand(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the bare name of a packaged configuration behind `--config` or `-c` replaced by its file.

    Raises ValueError for a value that is neither a packaged name nor a file.
    """
    configs = packaged()
    out: list[str] = []
    for argument in arguments:
        prefix = "--config=" if argument.startswith("--config=") else ""
        if prefix or (out and out[-1] in ("--config", "-c")):
            name = argument.removeprefix(prefix)
            if name not in configs and not Path(name).is_file():
                raise ValueError(
                    f"no configuration is called {name!r}; there are {', '.join(sorted(configs))}, or a file's path"
                )
            argument = prefix + configs.get(name, name)
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
    if sys.argv[1:] and sys.argv[1] in TOOLS:
        try:
            sys.exit(TOOLS[sys.argv[1]](sys.argv[2:]))
        except ValueError as error:
            if not raised_here(error):
                raise
            sys.exit(f"metricseg: {error}")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # threads of torch that wait soon give way to loader workers
    sys.path.append(os.getcwd())  # class_path finds your modules; last, so that none hides an installed one
    try:
        sys.argv[1:] = expand(sys.argv[1:])
        for module in ("lightning", "jsonargparse"):  # before seconds of imports
            if find_spec(module) is None:
                raise ModuleNotFoundError(f"No module named {module!r}")
        from metricseg.training.cli import run

        run(None)
    except ModuleNotFoundError as error:
        sys.exit(f'metricseg: {error}; the command line needs the train extra: pip install "metricseg[train]"')
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        if not raised_here(error):
            raise
        sys.exit(f"metricseg: {error}")


if __name__ == "__main__":
    main()
