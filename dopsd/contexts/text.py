"""Text features: what the student reads, and every context that shows no image to a VLM.

Each prompt is templated exactly once, on a copy: diffusers' own ``encode_prompt`` functions
rewrite the caller's list in place, so they are not used here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dopsd.config import RunConfig
from dopsd.contexts import ContextView
from dopsd.errors import DataError
from dopsd.models import FAMILIES
from dopsd.models.families.family import DTYPES, Family
from dopsd.models.pretrained import missing_weights_errors
from dopsd.models.quantize import for_encoder
from dopsd.models.stored import bring_weights
from dopsd.models.text_format import Template, TextFormat
from dopsd.records import Context


class TextEncoder:
    """Features of prompts from one frozen language model.

    ``model``: the text encoder without its head, or a VLM's language model that carries its
    weights. ``limit``: longer inputs are cut at the end, as the stock pipeline does.
    """

    def __init__(self, model: Any, tokenizer: Any, text_format: TextFormat, limit: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.format = text_format
        self.limit = limit
        self.dropped = dropped_tokens(tokenizer, text_format)

    @classmethod
    def from_config(cls, config: RunConfig, device: str) -> TextEncoder:
        """The base pipeline's own text encoder and tokenizer; no VLM is loaded."""
        family = FAMILIES[config.model.family](config.model.base, config.model.revision)
        model = load_encoder(config, family, device)
        return cls(
            getattr(model, "language_model", model),
            load_tokenizer(family),
            family.text_format,
            family.kept_tokens(config.context.text_tokens),
        )

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Context:
        """The context of B prompts, on the CPU: ``embeds`` [B, L, D] in the model's dtype, and
        ``lengths`` [B] where the family's rows are not padded to the limit.

        Raises DataError for a prompt that holds a special token.
        """
        texts = [self.template(prompt) for prompt in prompts]
        ids, mask = self.tokenize(texts)
        with reads_last_layer(self.model, self.format):
            output = self.model(
                input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
            )
        return text_features(output.hidden_states, mask, self.format, self.dropped)

    def template(self, prompt: str) -> str:
        """The chat text: one user turn and the generation prompt."""
        refuse_special_tokens(self.tokenizer, prompt)
        if self.format.template:
            return self.format.template.text(prompt)
        return chat_text(self.tokenizer, prompt, enable_thinking=self.format.thinking)

    def view(self, prompt: str) -> ContextView:
        """Templated text and token count of a prompt; nothing is computed."""
        return view_of(self.tokenizer, self.template(prompt), self.limit, self.dropped)

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask [B, L] of templated texts, on the model's device."""
        ids, mask = tokenize(self.tokenizer, texts, self.limit, self.format)
        return ids.to(self.model.device), mask.to(self.model.device)


def load_encoder(config: RunConfig, family: Family, device: str) -> Any:
    """The pipeline's frozen text encoder, without a language head."""
    from transformers import AutoModel

    options: dict[str, Any] = {}
    if torch.device(device).type != "cpu":  # tensor by tensor, never whole on the host
        options["device_map"] = {"": device}
    dtype = DTYPES[config.model.dtype]
    bring_weights(f"{family.base}/text_encoder")
    model = AutoModel.from_pretrained(
        family.base,
        subfolder="text_encoder",
        revision=family.revision,
        dtype=dtype,
        use_safetensors=True,
        quantization_config=for_encoder(config.encoder.quantize, dtype),
        **options,
    )
    return model.requires_grad_(False).eval().to(device)


def load_tokenizer(family: Family) -> Any:
    """The pipeline's tokenizer. Raises MissingWeights."""
    from transformers import AutoTokenizer

    with missing_weights_errors("model.base", f"the tokenizer of {family.base}"):
        return AutoTokenizer.from_pretrained(
            family.base, subfolder=family.tokenizer_folder, revision=family.revision
        )


def chat_text(tokenizer: Any, content: Any, **options: Any) -> str:
    """One user turn with ``content`` (a string or a list of parts) and the generation prompt."""
    message = [{"role": "user", "content": content}]
    text: str = tokenizer.apply_chat_template(
        message, tokenize=False, add_generation_prompt=True, **options
    )
    return text


def tokenize(
    tokenizer: Any, texts: list[str], limit: int, text_format: TextFormat
) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, L]: L is ``limit`` where rows are padded, else that of the longest. What the
    family drops comes on top of the limit."""
    if text_format.template:
        return _tokenize_written(tokenizer, texts, limit, text_format, text_format.template)
    batch = tokenizer(
        texts,
        padding="max_length" if text_format.padded else True,
        # Where the transformer sees the padding, its side is the stock pipeline's.
        padding_side=None if text_format.padded else "right",
        truncation=True,
        max_length=limit,
        return_tensors="pt",
    )
    return batch["input_ids"], batch["attention_mask"]


def _tokenize_written(
    tokenizer: Any, texts: list[str], limit: int, text_format: TextFormat, template: Template
) -> tuple[Tensor, Tensor]:
    """The same of texts that end with ``template.closing``, which no cut takes away."""
    closing = tokenizer(template.closing)["input_ids"]
    most = dropped_tokens(tokenizer, text_format) + limit - len(closing)
    begun = [text.removesuffix(template.closing) for text in texts]
    rows = tokenizer(begun, truncation=True, max_length=most)["input_ids"]
    batch = tokenizer.pad(
        {"input_ids": [[*row, *closing] for row in rows]},
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    return batch["input_ids"], batch["attention_mask"]


def dropped_tokens(tokenizer: Any, text_format: TextFormat) -> int:
    """First tokens of a templated text of which the transformer gets no features."""
    template = text_format.template
    return len(tokenizer(template.dropped)["input_ids"]) if template else 0


@contextmanager
def reads_last_layer(language_model: Any, text_format: TextFormat) -> Iterator[None]:
    """Let the last of ``hidden_states`` be what the format says; transformers takes it from behind
    the last norm, which is then left out."""
    if text_format.last_is_normed:
        yield
        return
    hook = language_model.norm.register_forward_hook(lambda _, inputs, output: inputs[0])
    try:
        yield
    finally:
        hook.remove()


def text_features(
    hidden_states: tuple[Tensor, ...], mask: Tensor, text_format: TextFormat, dropped: int = 0
) -> Context:
    """A context of the layers that the family reads, concatenated, without the first ``dropped``
    tokens: see ``TextEncoder.encode``."""
    layers = [hidden_states[layer][:, dropped:] for layer in text_format.layers]
    features, mask = torch.cat(layers, dim=-1), mask[:, dropped:]
    if text_format.padded:
        return Context({"embeds": features.cpu()})
    # Padding carries nothing; zeros make the bytes of a context independent of it.
    features = features * mask.unsqueeze(-1).to(features.dtype)
    return Context({"embeds": features.cpu(), "lengths": mask.sum(1).cpu()})


def view_of(tokenizer: Any, text: str, limit: int, dropped: int = 0) -> ContextView:
    """The view of a templated text of which ``limit`` tokens are kept behind the ``dropped``."""
    return ContextView(text, len(tokenizer(text)["input_ids"]) - dropped, limit)


def refuse_special_tokens(tokenizer: Any, prompt: str) -> None:
    """A special token inside a caption would end its turn or pass for a piece of the image.

    Raises DataError naming the caption and the token.
    """
    for token in tokenizer.added_tokens_decoder.values():
        if token.special and token.content in prompt:
            raise DataError(
                f"caption {prompt[:80]!r}: holds {token.content}, a special token of the "
                "tokenizer; take it out of the caption"
            )
