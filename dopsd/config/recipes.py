"""The recipes and DeepSpeed presets of ``configs/``, in the repository or in a wheel."""

from __future__ import annotations

from pathlib import Path

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


def recipe_text(config: str | Path) -> str:
    """The text of a config: a file's path, or a recipe's name.

    Raises ConfigError when it is neither, UnicodeDecodeError when it is no text.
    """
    file = Path(config)
    if not file.is_file() and str(config) in recipes():
        file = configs_folder() / f"{config}.yaml"
    if not file.is_file():
        raise ConfigError(
            f"config {config}: no such file or recipe; allowed: a YAML file or one of "
            + ", ".join(recipes())
        )
    return file.read_text(encoding="utf-8")


def preset_file(name: str) -> Path:
    """A DeepSpeed JSON file: a path that ends in ``.json``, or a preset's name.

    Raises ConfigError when there is none.
    """
    folder = configs_folder() / "deepspeed"
    file = Path(name) if name.endswith(".json") else folder / f"{name}.json"
    if not file.is_file():
        names = ", ".join(sorted(path.stem for path in folder.glob("*.json")))
        raise ConfigError(
            f"learner.deepspeed: {name!r}, allowed: {names} or the path of a JSON file"
        )
    return file
