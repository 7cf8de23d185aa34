"""What the rest of dopsd asks of a model family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, Field
from torch import Tensor, nn

from dopsd.errors import ModelError
from dopsd.models.attention import set_attention
from dopsd.models.pretrained import check_transformer, loading_errors, part_config, resolve_base
from dopsd.models.quantize import for_transformer
from dopsd.models.stored import bring_weights
from dopsd.models.text_format import TextFormat
from dopsd.readers import checked
from dopsd.records import Context

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PROMPT_TOKENS = 512
"""At which the stock pipelines cut a prompt."""
LEVELS = 1000
"""Resolution at which flow matching reads a pipeline's schedule."""


class _Vae(BaseModel):
    """What is read of the autoencoder's ``config.json``."""

    block_out_channels: Annotated[list[int], Field(min_length=1, max_length=16)]


class _Transformer(BaseModel):
    """What is read of the transformer's ``config.json``."""

    in_channels: Annotated[int, Field(ge=1)]


class Family(ABC):
    """One family of pipelines: how its latents, sigmas, velocity and LoRA targets are defined.

    Cheap to construct: reads only configs of the pipeline (local folder or hub id), no weights.
    ``key`` is what the user calls the base. Raises ModelError for one that is no pipeline, or that
    is of another family.
    """

    name: ClassVar[str]
    pipeline_class: ClassVar[str]
    """Name in diffusers; so are the next two."""
    transformer_class: ClassVar[str]
    vae_class: ClassVar[str]
    lora_targets: ClassVar[tuple[str, ...]]
    """Module name suffixes of the authors' LoRA recipe."""
    lora_all_linear: ClassVar[tuple[str, ...]] = ()
    """What `lora.targets: all-linear` means; empty: every linear module."""
    diffusers_kinds: ClassVar[tuple[str, ...]] = ("lora",)
    """Values of `lora.kind` that the pipeline's ``load_lora_weights`` reads."""
    text_format: TextFormat
    """A family whose pipelines differ in it sets their own when it is made."""
    comfyui_prefix: ClassVar[str | None] = None
    """Of a LoRA's keys in every ComfyUI that reads one; None where its names are not known."""
    kohya_names: ClassVar[tuple[tuple[str, str], ...] | None] = None
    """(pattern of a module's name, kohya's name of it) where that is not the name itself with
    underscores; a name that ends in qkv stands for three modules. None: not known."""
    stock_call: ClassVar[str] = "guidance_scale=0.0"
    """What the stock pipeline is called with beside prompt and steps, guidance off."""
    takes_references: ClassVar[bool] = False
    """Whether ``velocity`` and ``draw`` take contexts with reference images."""
    encoder_sees: ClassVar[bool] = False
    """Whether the text encoder is itself a VLM, which the context `vlm` shows its images to."""
    tokenizer_folder: ClassVar[str] = "tokenizer"
    processor_folder: ClassVar[str | None] = None
    """Subfolder with the image processor of such a text encoder, where the pipeline has one."""

    def __init__(self, base: str, revision: str | None = None, key: str = "model.base") -> None:
        self.base = resolve_base(base, key)
        self.revision = revision
        check_transformer(self.base, self.transformer_class, self.name, revision, key)

    def load_transformer(
        self,
        dtype: torch.dtype,
        device: torch.device | str,
        attention: str | None = None,
        key: str = "model.attention",
        quantize: str = "none",
    ) -> nn.Module:
        """The frozen transformer (``requires_grad`` off, eval mode) on ``device``, its blocks
        quantised as ``model.quantize`` says. ``key`` names ``attention`` to the user. Raises
        ModelError as :func:`set_attention` does."""
        options: dict[str, Any] = {}
        if quantize != "none":
            config = for_transformer(quantize, dtype, self.skeleton())
            options["quantization_config"] = config
        transformer = self._load_part(
            self.transformer_class, "transformer", dtype, device, **options
        )
        set_attention(transformer, attention, key)
        for parameter in transformer.parameters():
            # diffusers leaves some norms in fp32, DeepSpeed none: what learns and what teaches it
            # have to be the same model.
            if parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(dtype)
        frozen: nn.Module = transformer.requires_grad_(False).eval().to(device)
        return frozen

    def skeleton(self) -> nn.Module:
        """The transformer without weights (on the meta device): its modules can be named."""
        import diffusers

        with torch.device("meta"), loading_errors(f"{self.base}/transformer"):
            model: nn.Module = getattr(diffusers, self.transformer_class).from_config(
                self.part_config("transformer")
            )
        return model

    def load_pipeline(
        self,
        dtype: torch.dtype,
        device: torch.device | str,
        text_encoder: bool = True,
        attention: str | None = None,
        quantize: str = "none",
    ) -> Any:
        """The stock diffusers pipeline, to draw pictures with; without ``text_encoder`` it takes
        contexts only. ``quantize``: as :meth:`load_transformer`. Raises ModelError as
        :func:`set_attention` does."""
        given = self.given_parts(text_encoder)
        if quantize != "none":
            given["transformer"] = self.load_transformer(dtype, device, quantize=quantize)
        pipeline = self._pipeline(dtype, given)
        set_attention(pipeline.transformer, attention)
        return pipeline.to(device)

    def pipeline_around(
        self, transformer: nn.Module, dtype: torch.dtype, device: torch.device | str
    ) -> Any:
        """The stock pipeline, which takes contexts only, around a ``transformer`` of this family
        that is there already and stays as it is: the autoencoder alone is loaded."""
        pipeline = self._pipeline(dtype, {**self.given_parts(False), "transformer": transformer})
        pipeline.vae.requires_grad_(False).to(device)
        return pipeline

    def _pipeline(self, dtype: torch.dtype, given: dict[str, Any]) -> Any:
        """The stock pipeline on the CPU; ``given``: parts that are not loaded."""
        diffusers = _without_bars()
        for part in ("transformer", "vae", "text_encoder"):
            if part not in given:
                bring_weights(f"{self.base}/{part}")
        with loading_errors(self.base):
            pipeline = getattr(diffusers, self.pipeline_class).from_pretrained(
                self.base,
                dtype=dtype,
                revision=self.revision,
                use_safetensors=True,
                **given,
            )
        pipeline.set_progress_bar_config(disable=True)
        pipeline.vae.enable_slicing()  # a decoder's memory is that of one picture, not of a call's
        return pipeline

    def given_parts(self, text_encoder: bool) -> dict[str, Any]:
        """Parts of the stock pipeline that it does not load itself; see :meth:`load_pipeline`."""
        return {} if text_encoder else {"text_encoder": None, "tokenizer": None}

    def load_vae(self, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        """The frozen autoencoder on ``device``."""
        vae: nn.Module = self._load_part(self.vae_class, "vae", dtype, device)
        return vae.requires_grad_(False).eval().to(device)

    @abstractmethod
    def encode_images(self, vae: nn.Module, images: list[np.ndarray]) -> Tensor:
        """Latents [B, C, h, w] float32, as the transformer sees them, of B images uint8 [H, W, 3]
        of one size: the posterior's mode, so that an image always has the same."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of an image of ``height`` x ``width`` pixels.

        Raises ModelError when the size does not fit the family's patches or positions.
        """
        unit = self.vae_factor * 2
        if height % unit or width % unit:
            raise ModelError(
                f"image of {width}x{height} pixels: this base allows multiples of {unit} "
                "(data.bucket_multiple)"
            )
        if self.max_side is not None and max(height, width) > self.max_side:
            raise ModelError(
                f"image of {width}x{height} pixels: this base has positions for {self.max_side} "
                "pixels along a side (data.pixel_area)"
            )
        return self.channels, height // self.latent_pixels, width // self.latent_pixels

    @abstractmethod
    def sigmas(self, steps: int, height: int, width: int) -> Tensor:
        """The stock sampler's noise levels, [steps + 1] float32, descending to 0."""

    @abstractmethod
    def noise_levels(self, steps: int, height: int, width: int) -> Tensor:
        """The curve on which the levels of a sampler of ``steps`` steps lie, finely:
        [N + 1] float32, descending to 0, for flow matching to draw from."""

    @abstractmethod
    def velocity(
        self, transformer: nn.Module, latents: Tensor, sigma: Tensor, context: Context
    ) -> Tensor:
        """u = eps - x0 as the transformer sees it: the family's only conversion of time and sign.

        ``latents`` [B, C, h, w] float32, ``sigma`` [B] in [0, 1], ``context`` with B rows in the
        transformer's dtype. Returns [B, C, h, w] float32.
        """

    def reference_tokens(self, samples: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """What a Context holds beside its text, to let the model see reference images.

        Raises ModelError where the family has no editing branch.
        """
        raise ModelError(f"model.family: {self.name} takes no reference images")

    @abstractmethod
    def generate(
        self, pipeline: Any, context: Context, noise: Tensor, steps: int, height: int, width: int
    ) -> Any:
        """Run the stock sampler, guidance off, from ``noise`` [B, C, h, w]: B PIL images."""

    def stock_options(self, steps: int, options: dict[str, Any]) -> dict[str, Any]:
        """Options of the stock sampler that is called with prompts, guidance off.

        ``options``: a ``generator`` or ``latents`` [B, C, h, w] float32, ``image``, a list of
        reference pictures, and ``max_sequence_length``, the tokens at which a prompt is cut.
        """
        return {"guidance_scale": 0.0, **options}

    def finished(self, image: Image.Image) -> Image.Image:
        """A picture of the stock sampler as RGB."""
        return image

    @abstractmethod
    def decode(self, pipeline: Any, latents: Tensor) -> Any:
        """``latents`` [B, C, h, w] through the VAE, as the stock sampler ends: B PIL images."""

    @property
    def max_side(self) -> int | None:
        """Pixels along a side for which the transformer has positions; None: for any number."""
        return None

    @property
    def max_text_tokens(self) -> int | None:
        """Tokens of a text for which it has positions; None: for any number."""
        return None

    def kept_tokens(self, asked: int = PROMPT_TOKENS) -> int:
        """Tokens of a text that are read, of the ``asked``: longer texts are cut there."""
        return asked if self.max_text_tokens is None else min(asked, self.max_text_tokens)

    @property
    @abstractmethod
    def latent_pixels(self) -> int:
        """Pixels of an image, along one side, that one latent position stands for."""

    @cached_property
    def vae_factor(self) -> int:
        """Pixels of an image, along one side, to one of the VAE's latents."""
        vae = checked(self.part_config("vae"), f"{self.base}/vae/config.json", _Vae, ModelError)
        return int(2 ** (len(vae.block_out_channels) - 1))

    @cached_property
    def channels(self) -> int:
        """Channels of the latents as the transformer sees them."""
        where = f"{self.base}/transformer/config.json"
        return checked(self.part_config("transformer"), where, _Transformer, ModelError).in_channels

    @cached_property
    def scheduler(self) -> Any:
        """The pipeline's own scheduler; whoever samples with it copies it first."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        with loading_errors(f"{self.base}/scheduler"):
            return FlowMatchEulerDiscreteScheduler.from_pretrained(
                self.base, subfolder="scheduler", revision=self.revision
            )

    def part_config(self, subfolder: str) -> dict[str, Any]:
        """``config.json`` of one part of the pipeline."""
        return part_config(self.base, subfolder, self.revision)

    def _load_part(
        self,
        name: str,
        subfolder: str,
        dtype: torch.dtype,
        device: torch.device | str,
        **options: Any,
    ) -> Any:
        """Tensor by tensor to ``device``: a GPU's model is never whole on the host."""
        diffusers = _without_bars()
        if torch.device(device).type != "cpu":
            options["device_map"] = {"": str(device)}

        bring_weights(f"{self.base}/{subfolder}")
        with loading_errors(f"{self.base}/{subfolder}"):
            return getattr(diffusers, name).from_pretrained(
                self.base,
                subfolder=subfolder,
                dtype=dtype,
                revision=self.revision,
                use_safetensors=True,
                **options,
            )


def _without_bars() -> Any:
    """diffusers, which draws a bar for every model that it loads, as transformers does for it."""
    import diffusers
    from transformers.utils import logging

    diffusers.utils.logging.disable_progress_bar()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return diffusers


def as_pixels(images: list[np.ndarray], vae: Any) -> Tensor:
    """B images uint8 [H, W, 3] as the VAE takes them: [B, 3, H, W] in [-1, 1]."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels.to(vae.device, vae.dtype)
