"""The embedded tiny world: pictures, captions, an exact oracle, and a real few-step base.

Nothing here needs a network or a download: the base is package data.
"""

from __future__ import annotations

from pathlib import Path

from dopsd.errors import ModelError


def weights_path() -> Path:
    """Return the folder of the shipped base, a stock ``ZImagePipeline`` with its ``vlm/``.

    Raises ModelError if the package was installed without its data.
    """
    folder = Path(__file__).parent / "weights"
    if not (folder / "model_index.json").is_file():
        raise ModelError(
            f"the base of the shapes world is missing at {folder}: "
            "reinstall the package, or rebuild it with `dopsd shapes build-base`"
        )
    return folder
