"""`dopsd generate`: pictures from the base, or from the base with a LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load

from dopsd.data.pictures.drawn import is_drawn
from dopsd.data.pictures.images import BadImage, check_shape, decode_image
from dopsd.errors import ConfigError, ModelError
from dopsd.evaluation.drawn_with import WeightedLora
from dopsd.files import storage
from dopsd.models.families.family import DTYPES, Family
from dopsd.models.lora.factors import kind_of
from dopsd.models.lora.files import tensor_names
from dopsd.models.lora.fit import lora_fit
from dopsd.models.lora.layers import bind_parameters
from dopsd.models.lora.loading import load_adapter, mixed
from dopsd.models.transformer_folder import bind_folder, transformer_files

_MIN_REFERENCE_SIDE = 64
"""Pixels; FLUX.2's pipeline refuses smaller ones."""


def check_out(folder: str, paths: Sequence[str]) -> None:
    """Raises ConfigError when the folder cannot be written, or a picture that was not drawn by
    dopsd has the place of one of ``paths`` in it; others may lie beside them."""
    storage.check_writable("--out", folder)
    names = storage.names(folder)
    there = [path for path in paths if path.rpartition("/")[2] in names]
    if foreign := [path for path in there if not is_drawn(path)]:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise ConfigError(
            f"--out: {foreign[0]}{more} not drawn by dopsd, or changed since; allowed: another "
            "folder, or moving it away"
        )


def generate(
    family: Family,
    prompts: list[str],
    lora: str | Sequence[WeightedLora] | None,
    steps: int,
    height: int,
    width: int,
    seed: int,
    dtype: str,
    device: str,
    references: Sequence[Image.Image] = (),
    modules: str | None = None,
    transformer: str | None = None,
    partial: bool = False,
) -> Iterator[Image.Image]:
    """One picture per prompt with the stock few-step sampler, guidance off.

    ``lora``: a file, or several with their weights. Picture i uses ``torch.Generator`` seed
    ``seed + i``; ``references`` are shown with every
    prompt, in order. ``modules``: a file of what was trained beside the LoRA; ``transformer``: a
    folder (local or s3://) in place of the base's; ``partial``: the LoRA may fit in part. Raises
    ModelError for weights that are missing or do not fit, for references to a family that takes
    none, or for a size that the family's patches do not allow.
    """
    if references and not family.takes_references:
        raise ModelError(
            f"--reference: given with family {family.name}, allowed: none (its transformer takes "
            "no reference pictures)"
        )
    family.latent_shape(height, width)
    loras = [WeightedLora(lora)] if isinstance(lora, str) else list(lora or [])
    for path, what in (*((each.path, "LoRA") for each in loras), (modules, "modules")):
        if path is not None and not storage.exists(path):
            raise ModelError(f"{path}: no such {what} file")
    refuse_mixed({each.path: storage.read_bytes(each.path) for each in loras})
    if transformer is not None:
        transformer_files(transformer, family.transformer_class)  # before all is loaded
    pipeline = family.load_pipeline(DTYPES[dtype], device)
    if transformer is not None:
        bind_folder(pipeline.transformer, transformer, family.transformer_class)
    if modules is not None:
        load_modules(pipeline.transformer, modules, storage.read_bytes(modules))
    names = [f"lora{number}" for number in range(len(loras))]
    for name, each in zip(names, loras):
        load_lora(pipeline, each.path, storage.read_bytes(each.path), name, partial)
    if names:
        pipeline.set_adapters(names, [each.weight for each in loras])
    # The pipeline may change its list, so it gets a copy each time.
    for number, prompt in enumerate(prompts):
        options: dict[str, Any] = {"max_sequence_length": family.kept_tokens()}
        if references:
            options["image"] = list(references)
        options["generator"] = torch.Generator("cpu").manual_seed(seed + number)
        yield sample(family, pipeline, [prompt], steps, height, width, **options)[0]


def read_reference(path: str) -> Image.Image:
    """A reference picture as the stock pipeline takes it: upright RGB, transparency over white.

    Raises ConfigError with the reason for one that cannot be used.
    """
    try:
        image = decode_image(storage.read_bytes(path))
        check_shape(image.width, image.height, _MIN_REFERENCE_SIDE)
    except FileNotFoundError:
        raise ConfigError(f"--reference: {path}: no such file") from None
    except BadImage as error:
        raise ConfigError(f"--reference: {path}: {error}") from None
    return image


def sample(
    family: Family,
    pipeline: Any,
    prompts: list[str],
    steps: int,
    height: int,
    width: int,
    **options: Any,
) -> list[Image.Image]:
    """The stock few-step sampler, guidance off. ``options``: as ``Family.stock_options``."""
    # The pipeline rewrites the list that it is given, so it gets a copy.
    images = pipeline(
        prompt=list(prompts),
        height=height,
        width=width,
        num_inference_steps=steps,
        **family.stock_options(steps, options),
    ).images
    return [family.finished(image) for image in images]


def refuse_mixed(payloads: Mapping[str, bytes]) -> None:
    """Raises ModelError for files, by their paths, of several kinds: they lie on a layer in turn.
    What is no safetensors file is left to whoever loads it."""
    kinds: dict[str, str] = {}
    for path, payload in payloads.items():
        kinds[kind_of(tensor_names(payload), path)] = path
    if len(kinds) > 1:
        (kind, path), (other, _), *_ = kinds.items()
        raise ModelError(f"{path}: {mixed(kind, other)}")


def load_lora(
    pipeline: Any, path: str, payload: bytes, adapter: str, partial: bool = False
) -> None:
    """Load a LoRA file's bytes under the name ``adapter``; ``path`` names it to the user.

    Raises ModelError when the file is no LoRA, when nothing of it fits the pipeline, or unless
    ``partial`` when something does not.
    """
    fit = lora_fit(pipeline, pipeline.transformer, path, payload)
    fit.check(path, partial)
    try:
        load_adapter(pipeline, fit.fitting_state(), adapter)
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{path}: no LoRA that loads ({str(error).splitlines()[0]})") from None
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise ModelError(f"{path}: its weights have other shapes than the base's layers") from None
    if not any(adapter in names for names in pipeline.get_list_adapters().values()):
        raise ModelError(f"{path}: none of its keys fits the base, so it would change nothing")


def load_modules(transformer: Any, path: str, payload: bytes) -> None:
    """Take weights that were trained beside a LoRA; ``path`` names them to the user.

    Raises ModelError when the file holds anything that is no weight of this transformer.
    """
    try:
        state = load(payload)
        own = dict(transformer.named_parameters())
        bind_parameters({name: own[name] for name in state if name in own}, state)
    except (SafetensorError, ModelError) as error:
        raise ModelError(f"{path}: no modules of this base ({error})") from None
