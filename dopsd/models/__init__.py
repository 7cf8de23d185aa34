"""Model families behind one small protocol (``base.Family``), and LoRA."""

from __future__ import annotations

from dopsd.models.families.family import Family
from dopsd.models.families.flux2_klein import Flux2Klein
from dopsd.models.families.krea2 import Krea2
from dopsd.models.families.qwen_image import QwenImage
from dopsd.models.families.z_image import ZImage
from dopsd.models.pretrained import resolve_base, resolve_vlm

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
