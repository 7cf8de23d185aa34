"""dopsd: on-policy self-distillation of few-step image models, on Ray and DeepSpeed.

``train``, ``prepare``, ``generate``, ``evaluate``, ``plan`` and ``library`` are what the commands
of these names do, as functions (``dopsd.api`` documents them). They are loaded when they are first
asked for.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_FUNCTIONS = ("train", "prepare", "generate", "evaluate")
_PACKAGES = ("plan", "library")
"""Functions whose names packages have, too: those can be called."""


def __getattr__(name: str) -> Any:
    # By name, for the layers: this package is above the rest only in what it offers.
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"{__name__}.api"), name)
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FUNCTIONS, *_PACKAGES})


class _Module(ModuleType):
    def __reduce__(self) -> Any:
        """By name, as others are: a notebook's functions travel to Ray with what they name."""
        return importlib.import_module, (self.__name__,)


class _CalledPackage(_Module):
    """A package that is called as the function of its name."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        package, _, name = self.__name__.rpartition(".")
        return getattr(importlib.import_module(f"{package}.api"), name)(*arguments, **options)


class _Package(_Module):
    """Of this package: Python sets each package inside as an attribute once it is imported,
    whoever does so."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _PACKAGES and isinstance(value, ModuleType):
            value.__class__ = _CalledPackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
