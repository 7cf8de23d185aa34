"""Model families behind one small protocol (``base.Family``), and LoRA."""

from __future__ import annotations

from dopsd.models.base import Family
from dopsd.models.flux2_klein import Flux2Klein
from dopsd.models.pretrained import resolve_base, resolve_vlm
from dopsd.models.z_image import ZImage

FAMILIES: dict[str, type[Family]] = {"z_image": ZImage, "flux2_klein": Flux2Klein}

__all__ = ["FAMILIES", "Family", "Flux2Klein", "ZImage", "resolve_base", "resolve_vlm"]
