"""Qwen-Image 2.1, whose text encoder is a Qwen3-VL; its few steps are those of a merged LoRA."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, Field
from torch import Tensor, nn

from dopsd.errors import ModelError
from dopsd.method.schedule import scheduler_sigmas
from dopsd.models.families.family import LEVELS, Family, as_pixels
from dopsd.models.frames import decode_frame, encode_frame, frame_vae_factor
from dopsd.models.patches import pack, unpack
from dopsd.models.pretrained import pipeline_config
from dopsd.models.rows import rows_by, velocity_by_rows
from dopsd.models.text_format import Template, TextFormat
from dopsd.readers import checked
from dopsd.records import Context

_SLOT = 4
"""Tokens of the image (2x2) for each slot of the transformer's image mask."""


class _Index(BaseModel):
    """What is read of ``model_index.json``."""

    sample_sigmas: list[Annotated[float, Field(gt=0, le=1)]] | None = None


class QwenImage(Family):
    """QwenImage21Pipeline: the VAE's latents [B, C, H / 16, W / 16], one token per position.

    A Context holds ``embeds`` [B, L, D] and ``lengths`` [B]. The image's positions begin where the
    text ends, so texts of unequal length take a forward each.
    """

    name: ClassVar[str] = "qwen_image"
    pipeline_class: ClassVar[str] = "QwenImage21Pipeline"
    transformer_class: ClassVar[str] = "QwenImage21Transformer2DModel"
    vae_class: ClassVar[str] = "AutoencoderKLQwenImage21"
    # Attention and feed-forward of every block, as of the other families: all that a block has.
    lora_targets: ClassVar[tuple[str, ...]] = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "img_mlp.proj",
        "img_mlp.gate_layer",
        "img_mlp.out",
    )
    lora_all_linear: ClassVar[tuple[str, ...]] = lora_targets
    text_format = TextFormat(
        layers=(-1,),
        thinking=False,
        padded=False,
        template=Template(
            dropped="<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n",
            opening="<|im_start|>user\n",
            image="<image1><|vision_start|><|image_pad|><|vision_end|>",
            closing="<|im_end|>\n<|im_start|>assistant\n",
            empty=" ",
        ),
        last_is_normed=False,
        equal_lengths=True,
    )
    encoder_sees: ClassVar[bool] = True
    tokenizer_folder: ClassVar[str] = "processor"
    processor_folder: ClassVar[str | None] = "processor"

    def __init__(self, base: str, revision: str | None = None, key: str = "model.base") -> None:
        super().__init__(base, revision, key)
        index = pipeline_config(self.base, revision, key)
        self._own = checked(index, f"{self.base}/model_index.json", _Index, ModelError)

    def given_parts(self, text_encoder: bool) -> dict[str, Any]:
        from transformers import AutoTokenizer

        from dopsd.models.text_processor import TextProcessor

        # The pipeline looks at its processor when it is made, whether it shall read prompts or not.
        tokenizer = AutoTokenizer.from_pretrained(
            self.base, subfolder=self.tokenizer_folder, revision=self.revision
        )
        given = {"processor": TextProcessor(tokenizer)}
        return given if text_encoder else {"text_encoder": None, **given}

    @property
    def latent_pixels(self) -> int:
        return self.vae_factor

    @cached_property
    def vae_factor(self) -> int:
        return frame_vae_factor(self.part_config("vae"), self.base)

    @torch.no_grad()
    def encode_images(self, vae: Any, images: list[np.ndarray]) -> Tensor:
        pixels = as_pixels(images, vae)
        if vae.config.in_channels == 4:  # an opaque picture
            pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)
        return encode_frame(vae, pixels)

    def sigmas(self, steps: int, height: int, width: int) -> Tensor:
        return self._levels(self._unshifted(steps), height, width)

    def noise_levels(self, steps: int, height: int, width: int) -> Tensor:
        nodes = [*self._unshifted(steps), 0.0]
        places = np.arange(LEVELS) * (steps / LEVELS)
        return self._levels(np.interp(places, np.arange(steps + 1), nodes).tolist(), height, width)

    def _unshifted(self, steps: int) -> list[float]:
        """The pipeline's own where it has that many, as the stock sampler takes them."""
        own = self._own.sample_sigmas
        if own is not None and len(own) == steps:
            return own
        return [float(sigma) for sigma in np.linspace(1.0, 1 / steps, steps)]

    def _levels(self, unshifted: list[float], height: int, width: int) -> Tensor:
        from diffusers.pipelines.qwenimage21.pipeline_qwenimage21 import calculate_shift

        _, h, w = self.latent_shape(height, width)
        config = self.scheduler.config
        mu = calculate_shift(
            h * w,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        return scheduler_sigmas(self.scheduler, unshifted, mu)

    def velocity(
        self, transformer: nn.Module, latents: Tensor, sigma: Tensor, context: Context
    ) -> Tensor:
        groups = rows_by(context.tensors["lengths"].tolist())
        if len(groups) > 1:
            alike = partial(self.velocity, transformer)
            return velocity_by_rows(alike, groups, latents, sigma, context)
        embeds = _unpadded(context)
        tokens = pack(latents).to(embeds.dtype)
        batch, count = tokens.shape[:2]
        slots = torch.arange(embeds.shape[1] + count // _SLOT) >= embeds.shape[1]
        # The transformer's time is sigma and its output is u, that of the image at the end. Time is
        # rounded as the stock pipeline rounds it, so that bf16 is trained at the times that it
        # will be asked for.
        predicted = transformer(
            hidden_states=tokens,
            timestep=(sigma * 1000).to(embeds.dtype) / 1000,
            encoder_hidden_states=embeds,
            img_shapes=[[(1, *latents.shape[-2:])]] * batch,
            img_mask=slots.expand(batch, -1).to(latents.device),
            return_dict=False,
        )[0]
        return unpack(predicted[:, -count:].float(), *latents.shape[-2:])

    def generate(
        self, pipeline: Any, context: Context, noise: Tensor, steps: int, height: int, width: int
    ) -> Any:
        images: list[Any] = []
        # Each by itself: a call fills texts up to the longest, and so shifts the image's positions.
        for row in range(len(noise)):
            embeds = _unpadded(context.rows([row]))
            options = self.stock_options(steps, {"latents": noise[row : row + 1]})
            images += pipeline(
                prompt_embeds=embeds,
                height=height,
                width=width,
                num_inference_steps=steps,
                **options,
            ).images
        return [self.finished(image) for image in images]

    stock_call: ClassVar[str] = "true_cfg_scale=1.0"

    def stock_options(self, steps: int, options: dict[str, Any]) -> dict[str, Any]:
        # It reads prompts whole, and has a key of its own for guidance.
        options = {name: value for name, value in options.items() if name != "max_sequence_length"}
        if "latents" in options:
            options["latents"] = pack(options["latents"])
        return {"true_cfg_scale": 1.0, "sigmas": self._unshifted(steps), **options}

    def finished(self, image: Image.Image) -> Image.Image:
        # It draws transparency too.
        if image.mode != "RGBA":
            return image
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")

    def decode(self, pipeline: Any, latents: Tensor) -> Any:
        pixels = decode_frame(pipeline.vae, latents)
        images = pipeline.image_processor.postprocess(pixels, output_type="pil")
        return [self.finished(image) for image in images]


def _unpadded(context: Context) -> Tensor:
    """``embeds`` [B, L, D] of rows of one length, without what fills them up."""
    return context.tensors["embeds"][:, : int(context.tensors["lengths"][0])]
