"""The `vlm` context: the student reads the prompt, the teacher sees [target image, prompt].

One frozen VLM serves both: the pipeline's text encoder where that is one, else a VLM whose language
model carries the text encoder's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopsd.config import RunConfig
from dopsd.contexts import ContextView
from dopsd.contexts.image_processor import load_image_processor
from dopsd.contexts.text import (
    TextEncoder,
    chat_text,
    load_encoder,
    load_tokenizer,
    reads_last_layer,
    refuse_special_tokens,
    text_features,
    tokenize,
    view_of,
)
from dopsd.contexts.vlm_weights import load_vlm
from dopsd.data.sample import Sample
from dopsd.errors import ModelError
from dopsd.models import FAMILIES, resolve_vlm
from dopsd.models.families.family import DTYPES, Family
from dopsd.records import Context


class VlmEncoder:
    """Text and image+text features from one frozen VLM.

    ``text``: reads prompts through the VLM's language model. ``image_text_tokens``: longer inputs
    are cut at the end.
    """

    vae = None

    def __init__(
        self,
        model: Any,
        text: TextEncoder,
        vlm_tokenizer: Any,
        image_processor: Any,
        image_text_tokens: int,
    ) -> None:
        self.model = model
        self.text = text
        self.vlm_tokenizer = vlm_tokenizer
        self.image_processor = image_processor
        self.image_text_tokens = image_text_tokens
        self.image_token = model.config.image_token_id

    @classmethod
    def from_config(cls, config: RunConfig, device: str) -> VlmEncoder:
        """Load from the base pipeline, and the VLM of ``config`` where that is another model."""
        family = FAMILIES[config.model.family](config.model.base, config.model.revision)
        tokenizer = load_tokenizer(family)
        model, vlm_tokenizer = _load(config, family, device, tokenizer)
        context = config.context
        return cls(
            model,
            TextEncoder(
                model.language_model,
                tokenizer,
                family.text_format,
                family.kept_tokens(context.text_tokens),
            ),
            vlm_tokenizer,
            load_image_processor(config),
            family.kept_tokens(context.image_text_tokens),
        )

    def encode(self, samples: Sequence[Sample]) -> tuple[Context, Context]:
        images, prompts = [s.target for s in samples], [s.prompt for s in samples]
        return self.text.encode(prompts), self.encode_image_text(images, prompts)

    def encode_student(self, samples: Sequence[Sample]) -> Context:
        return self.text.encode([sample.prompt for sample in samples])

    @torch.no_grad()
    def encode_image_text(self, images: list[np.ndarray], prompts: list[str]) -> Context:
        """Features of B user turns, each an image (uint8 [H, W, 3]) and then its prompt.

        Raises ModelError when an image alone takes more tokens than the limit.
        """
        pixels, merged = self._pixels(images)
        grids = pixels["image_grid_thw"].to(self.model.device)
        texts = [self.image_template(p, int(n)) for p, n in zip(prompts, merged)]
        ids, mask = tokenize(self.vlm_tokenizer, texts, self.image_text_tokens, self.text.format)
        kept = (ids == self.image_token).sum(1)
        if not torch.equal(kept, merged):
            raise ModelError(
                f"context.image_text_tokens: {self.image_text_tokens}, but an image alone takes "
                f"{int(merged.max())} tokens; raise it or lower context.image_max_pixels"
            )
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        types = (ids == self.image_token).int()
        # Positions continue through the padding, as in the text context: where the transformer
        # attends to padding, it should be the padding that it knows.
        positions, _ = self.model.get_rope_index(ids, types, image_grid_thw=grids)
        with reads_last_layer(self.text.model, self.text.format):
            output = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                pixel_values=pixels["pixel_values"].to(self.model.device, self.model.dtype),
                image_grid_thw=grids,
                mm_token_type_ids=types,
                output_hidden_states=True,
                use_cache=False,
            )
        return text_features(output.hidden_states, mask, self.text.format, self.text.dropped)

    def views(self, samples: Sequence[Sample]) -> list[tuple[ContextView, ContextView]]:
        _, merged = self._pixels([sample.target for sample in samples])
        limit = self.image_text_tokens
        views = []
        for sample, count in zip(samples, merged):
            seen = self.image_template(sample.prompt, int(count))
            view = view_of(self.vlm_tokenizer, seen, limit, self.text.dropped)
            views.append((self.text.view(sample.prompt), view))
        return views

    def _pixels(self, images: list[np.ndarray]) -> tuple[Any, Tensor]:
        """The VLM's pixel values, and how many language tokens each image becomes, [B]."""
        pixels = self.image_processor(images=images, return_tensors="pt")
        return pixels, pixels["image_grid_thw"].prod(1) // self.image_processor.merge_size**2

    def image_template(self, prompt: str, image_tokens: int) -> str:
        """The chat text of the teacher's context, one placeholder per image token."""
        refuse_special_tokens(self.vlm_tokenizer, prompt)
        if template := self.text.format.template:
            text = template.text(prompt, with_image=True)
        else:
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            text = chat_text(self.vlm_tokenizer, content, enable_thinking=self.text.format.thinking)
        placeholder = self.vlm_tokenizer.convert_ids_to_tokens(self.image_token)
        if text.count(placeholder) != 1:
            raise ModelError("model.vlm: its chat template does not place exactly one image")
        return text.replace(placeholder, placeholder * image_tokens, 1)


def _load(config: RunConfig, family: Family, device: str, tokenizer: Any) -> tuple[Any, Any]:
    """The VLM's backbone, and the tokenizer of its texts with an image."""
    if family.encoder_sees:
        return load_encoder(config, family, device), tokenizer
    from transformers import AutoTokenizer

    vlm = resolve_vlm(config.model.base, config.model.vlm, config.model.revision)
    revision = config.model.vlm_revision
    model = load_vlm(
        vlm,
        family.base,
        DTYPES[config.model.dtype],
        device,
        revision=revision,
        base_revision=family.revision,
        quantize=config.encoder.quantize,
    )
    vlm_tokenizer = AutoTokenizer.from_pretrained(vlm, revision=revision)
    vlm_tokenizer.padding_side = tokenizer.padding_side
    return model, vlm_tokenizer
