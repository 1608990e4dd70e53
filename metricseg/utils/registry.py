"""Registries of classes that a configuration builds by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Names for classes of one kind, e.g. "loss". A class joins with `@registry.register("name")`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.entries: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[type], type]:
        """Class decorator: the class can be built as `name`. A name that is taken raises ValueError."""

        def add(cls: type) -> type:
            if name in self.entries:
                raise ValueError(f"{self.kind} {name!r} is registered already")
            self.entries[name] = cls
            return cls

        return add

    def resolve(self, config: Mapping[str, Any] | str) -> tuple[str, Callable[..., T], dict[str, Any]]:
        """The (name, class, arguments) that `config` describes; see `build`, which raises the same errors."""
        if not isinstance(config, str | Mapping):
            raise TypeError(f"a {self.kind} is described by a name or a mapping, got {config!r}")
        options: dict[str, Any] = {"name": config} if isinstance(config, str) else dict(config)
        if "class_path" in options:
            label, init_args = options.pop("class_path"), options.pop("init_args", None) or {}
            if "name" in options:
                raise ValueError(
                    f"{self.kind}: name {options['name']!r} beside class_path {label!r}; set the whole mapping, "
                    "{class_path: ..., init_args: {...}}"
                )
            return label, locate(label), {**init_args, **options}
        label = options.pop("name", None)
        if not isinstance(label, str) or label not in self.entries:
            raise ValueError(f"no {self.kind} is called {label!r}; there are {', '.join(sorted(self.entries))}")
        return label, self.entries[label], options

    def build(self, config: Mapping[str, Any] | str, **more: Any) -> T:
        """Build what `config` describes, with the arguments `more` added.

        `config` is a name, or a mapping of one of two forms: `{"name": "focal", "gamma": 1.5}`, or
        `{"class_path": "package.Class", "init_args": {...}}` for a class from elsewhere. Other keys of the second form
        are arguments too: jsonargparse turns `--key.init_args.gamma 2` into one.

        An unknown name or argument raises ValueError and lists the known ones. A value that is neither a name nor a
        mapping raises TypeError.
        """
        label, make, options = self.resolve(config)
        options.update(more)
        try:
            return make(**options)
        except TypeError as error:
            known = f"; its arguments are {', '.join(names)}" if (names := parameters(make)) else ""
            raise ValueError(f"{self.kind} {label!r} can't be built from {options}: {error}{known}") from error


def parameters(make: Callable[..., Any]) -> list[str]:
    """Names of the arguments of a class or function. If a class passes **options on, its base's are among them."""
    names: list[str] = []
    for part in inspect.getmro(make) if isinstance(make, type) else (make,):
        if isinstance(make, type) and "__init__" not in vars(part):
            continue
        try:
            call = inspect.signature(part.__init__ if isinstance(make, type) else part)  # type: ignore[misc]
        except ValueError:  # some classes written in C have none
            break
        kinds = {name: p.kind for name, p in call.parameters.items() if name != "self"}
        keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names += [name for name, kind in kinds.items() if kind in keywords and name not in names]
        if inspect.Parameter.VAR_KEYWORD not in kinds.values():
            break
    return names


def locate(path: Any) -> Callable[..., Any]:
    """The class or function at a dotted path; ValueError if there is none."""
    module, _, name = str(path).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path!r} can't be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"{path!r} is {found!r}; class_path takes a class or a function")
    return found  # type: ignore[no-any-return]
