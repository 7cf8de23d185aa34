"""A vision-language model that answers questions about pictures, loaded when first needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from dopsd.models.pretrained import missing_weights_errors

_ANSWER_TOKENS = 256


class Vlm:
    """Any image-text-to-text model of transformers with a chat template.

    Raises MissingWeights, in the name of ``who``, when it is not available.
    """

    def __init__(self, who: str, model: str, device: str) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        with missing_weights_errors(who, model):
            self.processor: Any = AutoProcessor.from_pretrained(model)
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                model, dtype=dtype, use_safetensors=True
            )
            self.model: Any = loaded.eval().to(device)

    @torch.no_grad()
    def answer(self, images: Sequence[Image.Image], question: str) -> str:
        """The greedy answer to one question about the pictures."""
        inputs = self.inputs(images, question)
        tokens = self.model.generate(**inputs, max_new_tokens=_ANSWER_TOKENS, do_sample=False)
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        text: str = self.processor.tokenizer.decode(answer, skip_special_tokens=True)
        return text.strip()

    @torch.no_grad()
    def choose(self, images: Sequence[Image.Image], question: str, options: Sequence[str]) -> int:
        """Index of the option whose first token is the likeliest beginning of the answer.

        Always one of the options, whatever else the model might have said.
        """
        tokens = [
            self.processor.tokenizer.encode(option, add_special_tokens=False)[0]
            for option in options
        ]
        assert len(set(tokens)) == len(tokens), "options begin with the same token"
        logits = self.model(**self.inputs(images, question)).logits[0, -1]
        return int(logits[tokens].argmax())

    def inputs(self, images: Sequence[Image.Image], question: str) -> Any:
        content: list[dict[str, str]] = [{"type": "image"} for _ in images]
        content.append({"type": "text", "text": question})
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = self.processor(text=[text], images=list(images), return_tensors="pt")
        return inputs.to(self.model.device, self.model.dtype)
