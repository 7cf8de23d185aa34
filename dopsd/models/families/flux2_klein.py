"""FLUX.2-klein (4B and 9B: they differ by their configs alone)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dopsd.method.rollout import rollout
from dopsd.method.schedule import scheduler_sigmas
from dopsd.models.families.family import LEVELS, Family, as_pixels
from dopsd.models.patches import pack, patchify, unpack, unpatchify
from dopsd.models.rows import rows_by, velocity_by_rows
from dopsd.models.text_format import TextFormat
from dopsd.records import Context

_REFERENCE_TIME = 10
"""Spacing of reference images along the time axis of the position ids, as in the stock pipeline:
the image that is drawn is at 0, its references at 10, 20, ..."""


class Flux2Klein(Family):
    """Flux2KleinPipeline: patchified latents, normalised by the VAE's batch-norm statistics.

    Latents are [B, 4 c, H / 16, W / 16] (c: the VAE's channels): one position is one token. A
    Context holds ``embeds`` [B, L, D], whose padding the transformer attends to as well, and,
    where the model shall see reference images, what ``reference_tokens`` makes of them.
    """

    name: ClassVar[str] = "flux2_klein"
    pipeline_class: ClassVar[str] = "Flux2KleinPipeline"
    transformer_class: ClassVar[str] = "Flux2Transformer2DModel"
    vae_class: ClassVar[str] = "AutoencoderKLFlux2"
    # The authors' list, by today's names; the single-stream blocks are left out.
    lora_targets: ClassVar[tuple[str, ...]] = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "ff.linear_in",
        "ff.linear_out",
        "ff_context.linear_in",
        "ff_context.linear_out",
    )
    # Every linear layer of a block. ComfyUI has no names for FLUX.2's modulation and time layers:
    # it would leave them out without a word.
    lora_all_linear: ClassVar[tuple[str, ...]] = (
        *lora_targets,
        "attn.to_qkv_mlp_proj",
        "attn.to_out",
    )
    text_format = TextFormat(layers=(9, 18, 27), thinking=False, padded=True)
    diffusers_kinds: ClassVar[tuple[str, ...]] = ("lora", "lokr")
    comfyui_prefix: ClassVar[str | None] = "transformer."
    kohya_names: ClassVar[tuple[tuple[str, str], ...] | None] = (
        (r"transformer_blocks\.(\d+)\.attn\.to_[qkv]", r"double_blocks_\1_img_attn_qkv"),
        (r"transformer_blocks\.(\d+)\.attn\.add_[qkv]_proj", r"double_blocks_\1_txt_attn_qkv"),
        (r"transformer_blocks\.(\d+)\.attn\.to_out\.0", r"double_blocks_\1_img_attn_proj"),
        (r"transformer_blocks\.(\d+)\.attn\.to_add_out", r"double_blocks_\1_txt_attn_proj"),
        (r"transformer_blocks\.(\d+)\.ff\.linear_in", r"double_blocks_\1_img_mlp_0"),
        (r"transformer_blocks\.(\d+)\.ff\.linear_out", r"double_blocks_\1_img_mlp_2"),
        (r"transformer_blocks\.(\d+)\.ff_context\.linear_in", r"double_blocks_\1_txt_mlp_0"),
        (r"transformer_blocks\.(\d+)\.ff_context\.linear_out", r"double_blocks_\1_txt_mlp_2"),
        (r"single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj", r"single_blocks_\1_linear1"),
        (r"single_transformer_blocks\.(\d+)\.attn\.to_out", r"single_blocks_\1_linear2"),
    )
    takes_references: ClassVar[bool] = True

    @property
    def latent_pixels(self) -> int:
        return self.vae_factor * 2

    @torch.no_grad()
    def encode_images(self, vae: Any, images: list[np.ndarray]) -> Tensor:
        latents = patchify(vae.encode(as_pixels(images, vae)).latent_dist.mode().float())
        mean, std = _statistics(vae)
        normalised: Tensor = (latents - mean) / std
        return normalised

    def sigmas(self, steps: int, height: int, width: int) -> Tensor:
        return self._levels(steps, steps, height, width)

    def noise_levels(self, steps: int, height: int, width: int) -> Tensor:
        return self._levels(LEVELS, steps, height, width)

    def _levels(self, count: int, steps: int, height: int, width: int) -> Tensor:
        """``count`` levels under the shift of a sampler of ``steps`` steps. The pipeline's shift is
        linear in the steps: at 1000 it would press nearly all levels against 0."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        _, h, w = self.latent_shape(height, width)
        unshifted = np.linspace(1.0, 1 / count, count).tolist()
        return scheduler_sigmas(self.scheduler, unshifted, compute_empirical_mu(h * w, steps))

    def velocity(
        self, transformer: nn.Module, latents: Tensor, sigma: Tensor, context: Context
    ) -> Tensor:
        groups = _rows_alike(context)
        if len(groups) > 1:
            alike = partial(self.velocity, transformer)
            return velocity_by_rows(alike, groups, latents, sigma, context)
        embeds, device = context.tensors["embeds"], latents.device
        tokens = pack(latents).to(embeds.dtype)
        hidden, ids = tokens, position_ids(*latents.shape[-2:], device=device)
        if "reference" in context.tensors:
            length = int(context.tensors["reference_lengths"][0])
            reference_ids = context.tensors["reference_ids"][0, :length]
            hidden = torch.cat([tokens, context.tensors["reference"][:, :length]], dim=1)
            ids = torch.cat([ids, reference_ids.to(device)])
        # The transformer's time is sigma and its output is u. Time is rounded as the stock
        # pipeline rounds it, so that bf16 is trained at the times that it will be asked for.
        predicted = transformer(
            hidden_states=hidden,
            timestep=(sigma * 1000).to(embeds.dtype) / 1000,
            guidance=None,
            encoder_hidden_states=embeds,
            txt_ids=position_ids(1, 1, length=embeds.shape[1], device=device),
            img_ids=ids,
            return_dict=False,
        )[0]
        return unpack(predicted[:, : tokens.shape[1]].float(), *latents.shape[-2:])

    def reference_tokens(self, samples: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """What a Context holds beside ``embeds``, to let the model see reference images.

        ``samples``: of each of the B samples its references, one or more, as ``encode_images``
        gives them ([C, h, w] each, of any sizes; B encoded images of one size are one reference
        of B samples: ``[[row] for row in latents]``). Returns, on the CPU:

        - ``reference`` [B, R, C] float32: all tokens of a sample, zero-padded to the longest;
        - ``reference_ids`` [B, R, 4] int64: their positions (time, row, column, 0), where the
          i-th reference stands at time 10 * (i + 1), as in the stock pipeline;
        - ``reference_lengths`` [B] int64: tokens of each sample.

        Rows whose references differ in size take a forward each: the transformer knows one set of
        positions for a batch. Under ZeRO-3, where all ranks must make equally many forwards, such
        rows may not share a micro-batch.
        """
        tokens, ids = [], []
        for references in samples:
            tokens.append(torch.cat([pack(latents[None])[0] for latents in references]))
            ids.append(
                torch.cat(
                    [
                        position_ids(*latents.shape[-2:], time=_REFERENCE_TIME * (number + 1))
                        for number, latents in enumerate(references)
                    ]
                )
            )
        return {
            "reference": pad_sequence(tokens, batch_first=True).float().cpu(),
            "reference_ids": pad_sequence(ids, batch_first=True),
            "reference_lengths": torch.tensor([len(positions) for positions in ids]),
        }

    def generate(
        self, pipeline: Any, context: Context, noise: Tensor, steps: int, height: int, width: int
    ) -> Any:
        if "reference" in context.tensors:
            # The stock pipeline takes references as pictures only.
            velocity = partial(self.velocity, pipeline.transformer, context=context)
            sigmas = self.sigmas(steps, height, width)
            return self.decode(pipeline, rollout(velocity, noise, sigmas)[-1])
        return pipeline(
            prompt_embeds=context.tensors["embeds"],
            latents=noise,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=1.0,
        ).images

    def decode(self, pipeline: Any, latents: Tensor) -> Any:
        vae = pipeline.vae
        mean, std = _statistics(vae)
        latents = unpatchify(latents.to(vae.device) * std + mean)
        images = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        return pipeline.image_processor.postprocess(images, output_type="pil")


def position_ids(
    height: int,
    width: int,
    *,
    time: int = 0,
    length: int = 1,
    device: torch.device | str = "cpu",
) -> Tensor:
    """[height * width * length, 4] int64: (time, row, column, place in the text)."""
    sides = (torch.arange(size, device=device) for size in (height, width, length))
    return torch.cartesian_prod(torch.tensor([time], device=device), *sides)


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of patchified latents, [1, C, 1, 1] float32 each."""
    mean = vae.bn.running_mean.float().view(1, -1, 1, 1)
    variance = vae.bn.running_var.float().view(1, -1, 1, 1)
    return mean, torch.sqrt(variance + vae.config.batch_norm_eps)


def _rows_alike(context: Context) -> list[list[int]]:
    """The batch's rows, grouped by the sizes of their references; none without references."""
    if "reference" not in context.tensors:
        return []
    ids, lengths = context.tensors["reference_ids"], context.tensors["reference_lengths"].tolist()
    return rows_by(row[:length].numpy().tobytes() for row, length in zip(ids, lengths))
