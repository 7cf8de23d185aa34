"""A processor of texts alone, for pipelines that ask for one of a VLM."""

from __future__ import annotations

from typing import Any

from transformers import ProcessorMixin


class TextProcessor(ProcessorMixin):  # type: ignore[misc]
    """Qwen3-VL's also reads videos, and so asks for torchvision; prompts need their tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, chat_template=tokenizer.chat_template)

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
        """A batch, of a single text as well: Qwen3-VL's answers so."""
        return super().__call__(text=[text] if isinstance(text, str) else text, **options)
