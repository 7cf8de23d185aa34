"""How a VLM is shown an image: as pixel values of the sizes that the config allows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dopsd.config import RunConfig
from dopsd.models import FAMILIES, resolve_vlm
from dopsd.models.families.family import Family
from dopsd.models.pretrained import MissingWeights, missing_weights_errors
from dopsd.models.torchvision import torchvision_problem

_HALF = [0.5, 0.5, 0.5]
"""Mean and standard deviation of pixels with which Qwen3-VL was trained."""


def load_image_processor(config: RunConfig) -> Any:
    """The VLM's image processor, for images of the sizes that the config allows. Raises
    MissingWeights."""
    if config.separate_vlm:
        vlm = resolve_vlm(config.model.base, config.model.vlm, config.model.revision)
        processor = _read("model.vlm", vlm, revision=config.model.vlm_revision)
    else:
        family = FAMILIES[config.model.family](config.model.base, config.model.revision)
        processor = _of_pipeline(family)
    processor.size = {
        "shortest_edge": config.context.image_min_pixels,
        "longest_edge": config.context.image_max_pixels,
    }
    return processor


def image_tokens(config: RunConfig, sizes: Iterable[tuple[int, int]]) -> int:
    """Language tokens of an image, at most, of images of these (width, height); nothing is
    computed."""
    processor = load_image_processor(config)
    patches = (processor.get_number_of_image_patches(height, width) for width, height in sizes)
    return int(max(patches) // processor.merge_size**2)


def _of_pipeline(family: Family) -> Any:
    """That of a pipeline whose text encoder is the VLM: its own, or for one that never shows it
    an image, one with the patches of the text encoder's vision tower."""
    if family.processor_folder is not None:
        return _read(
            "model.base", family.base, revision=family.revision, subfolder=family.processor_folder
        )
    from transformers import Qwen2VLImageProcessorPil

    vision = family.part_config("text_encoder")["vision_config"]
    return Qwen2VLImageProcessorPil(
        patch_size=vision["patch_size"],
        temporal_patch_size=vision["temporal_patch_size"],
        merge_size=vision["spatial_merge_size"],
        image_mean=_HALF,
        image_std=_HALF,
    )


def _read(key: str, model: str, **options: Any) -> Any:
    from transformers import AutoImageProcessor

    try:
        with missing_weights_errors(key, f"the image processor of {model}"):
            return AutoImageProcessor.from_pretrained(model, **options)
    except MissingWeights:
        if problem := torchvision_problem():  # of which transformers says nothing
            raise MissingWeights(f"{key}: no image processor: torchvision {problem}") from None
        raise
