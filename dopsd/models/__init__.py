"""Model families behind one small protocol (``base.Family``), and LoRA."""

from __future__ import annotations

from dopsd.models.base import Family
from dopsd.models.flux2_klein import Flux2Klein
from dopsd.models.krea2 import Krea2
from dopsd.models.pretrained import resolve_base, resolve_vlm
from dopsd.models.qwen_image import QwenImage
from dopsd.models.z_image import ZImage

FAMILIES: dict[str, type[Family]] = {
    family.name: family for family in (ZImage, Flux2Klein, Krea2, QwenImage)
}

__all__ = [
    "FAMILIES",
    "Family",
    "Flux2Klein",
    "Krea2",
    "QwenImage",
    "ZImage",
    "resolve_base",
    "resolve_vlm",
]
