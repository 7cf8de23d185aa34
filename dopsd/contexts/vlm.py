"""The `vlm` context: the student reads the prompt, the teacher sees [target image, prompt].

Each prompt is templated exactly once per role, on copies: diffusers' ``_encode_prompt`` rewrites
the caller's list in place, so it is not used here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopsd.config import RunConfig
from dopsd.contexts import ContextView
from dopsd.contexts.vlm_weights import carry_text_encoder, load_vlm, text_encoder_config
from dopsd.errors import DataError, ModelError
from dopsd.models import FAMILIES, resolve_vlm
from dopsd.models.base import DTYPES
from dopsd.types import Context


class VlmEncoder:
    """Text and image+text features from one frozen VLM.

    ``layers``: which ``hidden_states`` are concatenated into features. ``text_tokens`` and
    ``image_text_tokens``: longer inputs are cut at the end, as the stock pipeline does.
    """

    def __init__(
        self,
        model: Any,
        text_tokenizer: Any,
        vlm_tokenizer: Any,
        image_processor: Any,
        layers: tuple[int, ...],
        text_tokens: int,
        image_text_tokens: int,
    ) -> None:
        self.model = model
        self.text_tokenizer = text_tokenizer
        self.vlm_tokenizer = vlm_tokenizer
        self.image_processor = image_processor
        self.layers = layers
        self.text_tokens = text_tokens
        self.image_text_tokens = image_text_tokens
        self.image_token = model.config.image_token_id

    @classmethod
    def from_config(cls, config: RunConfig, device: str) -> VlmEncoder:
        """Load from the base pipeline and the VLM of ``config``."""
        from transformers import AutoImageProcessor, AutoTokenizer

        family = FAMILIES[config.model.family](config.model.base, config.model.revision)
        vlm = resolve_vlm(config.model.base, config.model.vlm)
        revision = config.model.vlm_revision
        text_encoder = text_encoder_config(family.base, family.revision)
        model = load_vlm(vlm, DTYPES[config.model.dtype], device, revision, text_encoder)
        carry_text_encoder(model.language_model, family.base, family.revision)
        processor = AutoImageProcessor.from_pretrained(vlm, revision=revision)
        processor.size = {
            "shortest_edge": config.context.image_min_pixels,
            "longest_edge": config.context.image_max_pixels,
        }
        return cls(
            model,
            AutoTokenizer.from_pretrained(
                family.base, subfolder="tokenizer", revision=family.revision
            ),
            AutoTokenizer.from_pretrained(vlm, revision=revision),
            processor,
            family.text_layers,
            config.context.text_tokens,
            config.context.image_text_tokens,
        )

    def encode(self, images: list[np.ndarray], prompts: list[str]) -> tuple[Context, Context]:
        """(text context, image+text context) of B images uint8 [H, W, 3] and B prompts.

        ``embeds`` [B, L, D] in the model's dtype on the CPU, ``lengths`` [B].
        """
        return self.encode_text(prompts), self.encode_image_text(images, prompts)

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> Context:
        """Features of the chat template: user turn, generation prompt, thinking enabled."""
        texts = [self.text_template(prompt) for prompt in prompts]
        ids, mask = self._tokenize(self.text_tokenizer, texts, self.text_tokens)
        output = self.model.language_model(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        )
        return self._context(output.hidden_states, mask)

    @torch.no_grad()
    def encode_image_text(self, images: list[np.ndarray], prompts: list[str]) -> Context:
        """Features of one user turn that holds the image and then the prompt."""
        pixels, merged = self._pixels(images)
        grids: Tensor = pixels["image_grid_thw"]
        texts = [self.image_template(p, int(n)) for p, n in zip(prompts, merged)]
        ids, mask = self._tokenize(self.vlm_tokenizer, texts, self.image_text_tokens)
        found = (ids == self.image_token).sum(1).cpu()
        if not torch.equal(found, merged):
            raise ModelError(
                f"context.image_text_tokens: {self.image_text_tokens}, but an image alone takes "
                f"{int(merged.max())} tokens; raise it or lower context.image_max_pixels"
            )
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=pixels["pixel_values"].to(self.model.device, self.model.dtype),
            image_grid_thw=grids.to(self.model.device),
            mm_token_type_ids=(ids == self.image_token).int(),
            output_hidden_states=True,
            use_cache=False,
        )
        return self._context(output.hidden_states, mask)

    def views(
        self, images: list[np.ndarray], prompts: list[str]
    ) -> list[tuple[ContextView, ContextView]]:
        """(student's, teacher's) templated text and token count of each sample."""
        _, merged = self._pixels(images)
        return [
            (
                self._view(self.text_tokenizer, self.text_template(prompt), self.text_tokens),
                self._view(
                    self.vlm_tokenizer,
                    self.image_template(prompt, int(count)),
                    self.image_text_tokens,
                ),
            )
            for prompt, count in zip(prompts, merged)
        ]

    @staticmethod
    def _view(tokenizer: Any, text: str, limit: int) -> ContextView:
        return ContextView(text, len(tokenizer(text)["input_ids"]), limit)

    def _pixels(self, images: list[np.ndarray]) -> tuple[Any, Tensor]:
        """The VLM's pixel values, and how many language tokens each image becomes, [B]."""
        pixels = self.image_processor(images=images, return_tensors="pt")
        return pixels, pixels["image_grid_thw"].prod(1) // self.image_processor.merge_size**2

    def text_template(self, prompt: str) -> str:
        """The chat text of the student's context."""
        _refuse_special_tokens(self.text_tokenizer, prompt)
        return self._template(self.text_tokenizer, prompt, enable_thinking=True)

    def image_template(self, prompt: str, image_tokens: int) -> str:
        """The chat text of the teacher's context, one placeholder per image token."""
        _refuse_special_tokens(self.vlm_tokenizer, prompt)
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = self._template(self.vlm_tokenizer, content)
        placeholder = self.vlm_tokenizer.convert_ids_to_tokens(self.image_token)
        if text.count(placeholder) != 1:
            raise ModelError("model.vlm: its chat template does not place exactly one image")
        return text.replace(placeholder, placeholder * image_tokens, 1)

    @staticmethod
    def _template(tokenizer: Any, content: Any, **options: Any) -> str:
        message = [{"role": "user", "content": content}]
        text: str = tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, **options
        )
        return text

    def _tokenize(self, tokenizer: Any, texts: list[str], limit: int) -> tuple[Tensor, Tensor]:
        batch = tokenizer(
            texts,
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=limit,
            return_tensors="pt",
        )
        device = self.model.device
        return batch["input_ids"].to(device), batch["attention_mask"].to(device)

    def _context(self, hidden_states: tuple[Tensor, ...], mask: Tensor) -> Context:
        features = torch.cat([hidden_states[layer] for layer in self.layers], dim=-1)
        # Padding carries nothing; zeros make the bytes of a context independent of it.
        features = features * mask.unsqueeze(-1).to(features.dtype)
        return Context({"embeds": features.cpu(), "lengths": mask.sum(1).cpu()})


def _refuse_special_tokens(tokenizer: Any, prompt: str) -> None:
    """A special token inside a caption would end its turn or pass for a piece of the image."""
    for token in tokenizer.added_tokens_decoder.values():
        if token.special and token.content in prompt:
            raise DataError(
                f"caption {prompt[:80]!r}: holds {token.content}, a special token of the "
                "tokenizer; take it out of the caption"
            )
