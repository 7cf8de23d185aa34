"""Model families behind one small protocol (``base.Family``), and LoRA."""

from __future__ import annotations

from dopsd.models.base import Family, resolve_base, resolve_vlm
from dopsd.models.z_image import ZImage

FAMILIES: dict[str, type[Family]] = {"z_image": ZImage}

__all__ = ["FAMILIES", "Family", "ZImage", "resolve_base", "resolve_vlm"]
