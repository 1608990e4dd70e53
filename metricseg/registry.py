"""Things built from a configuration by name."""

from __future__ import annotations

import importlib
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

    def build(self, config: Mapping[str, Any] | str) -> T:
        """What `config` describes.

        `config` is a name, or a mapping of one of two forms: `{"name": "focal", "gamma": 1.5}`, or
        `{"class_path": "package.Class", "init_args": {...}}` for a class from elsewhere. An unknown name or argument
        raises ValueError, and what is neither a name nor a mapping raises TypeError.
        """
        if not isinstance(config, str | Mapping):
            raise TypeError(f"a {self.kind} is described by a name or a mapping, got {config!r}")
        options: dict[str, Any] = {"name": config} if isinstance(config, str) else dict(config)
        if "class_path" in options:
            if others := sorted(set(options) - {"class_path", "init_args"}):
                raise ValueError(f"{self.kind}: {', '.join(others)} beside class_path; arguments go into init_args")
            label, make, options = options["class_path"], locate(options["class_path"]), options.get("init_args") or {}
        else:
            label = options.pop("name", None)
            if not isinstance(label, str) or label not in self.entries:
                raise ValueError(f"no {self.kind} is called {label!r}; there are {', '.join(sorted(self.entries))}")
            make = self.entries[label]
        try:
            return make(**options)
        except TypeError as error:
            raise ValueError(f"{self.kind} {label!r} can't be built from {dict(options)}: {error}") from error


def locate(path: str) -> Callable[..., Any]:
    """The object at a dotted path; ValueError if there is none."""
    module, _, name = path.rpartition(".")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path!r} can't be imported: {error}") from error
    return found
