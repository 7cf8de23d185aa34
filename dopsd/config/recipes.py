"""The recipes and DeepSpeed presets of ``configs/``, in the repository or in a wheel."""

from __future__ import annotations

import os
from pathlib import Path

from dopsd import shown
from dopsd.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]
DEFAULT = "shapes"
"""The recipe of a command without CONFIG."""


def configs_folder() -> Path:
    """In a wheel inside the package, in the repository beside it."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def recipes() -> list[str]:
    """Their names, as CONFIG takes them."""
    return sorted(path.stem for path in configs_folder().glob("*.yaml"))


def recipe_file(config: str | Path) -> str:
    """Where a config lies: a file by its path, or a recipe by its name.

    Raises ConfigError when it is neither.
    """
    name = str(config)
    if os.path.exists(name) and not os.path.isdir(name):
        return name
    if name in recipes():
        return str(configs_folder() / f"{name}.yaml")
    what = "a folder" if os.path.isdir(name) else "no such file or recipe"
    raise ConfigError(
        f"config {shown.brief(name, 400)}: {what}; allowed: a YAML file or one of "
        + ", ".join(recipes())
    )


def preset_file(name: str) -> Path:
    """A DeepSpeed JSON file: a path that ends in ``.json``, or a preset's name.

    Raises ConfigError when there is none.
    """
    folder = configs_folder() / "deepspeed"
    file = Path(name) if name.endswith(".json") else folder / f"{name}.json"
    if not os.path.isfile(file):  # which takes any text, as a path that is none
        names = ", ".join(sorted(path.stem for path in folder.glob("*.json")))
        raise ConfigError(
            f"learner.deepspeed: {shown.value(name)}, allowed: {names} or the path of a JSON file"
        )
    return file
