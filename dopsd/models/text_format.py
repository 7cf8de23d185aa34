"""How a family's transformer wants a prompt read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """Chat text that a pipeline writes out itself, in place of its tokenizer's chat template."""

    dropped: str
    """Comes first; the transformer gets no features of it."""
    opening: str
    """Comes next, before the prompt or its image."""
    image: str
    """What stands before a prompt whose image is shown, with one placeholder for it."""
    closing: str
    """Comes last, and stays where a prompt is cut."""
    empty: str = ""
    """What stands for an empty prompt."""

    def text(self, prompt: str, with_image: bool = False) -> str:
        """The whole text of a prompt."""
        image = self.image if with_image else ""
        return f"{self.dropped}{self.opening}{image}{prompt or self.empty}{self.closing}"


@dataclass(frozen=True)
class TextFormat:
    """How a family's transformer wants a prompt read."""

    layers: tuple[int, ...]
    """Entries of the text encoder's ``hidden_states`` that are concatenated into features."""
    thinking: bool
    """``enable_thinking`` of the chat template."""
    padded: bool
    """Every row is as long as the limit, and the transformer attends to the padding; otherwise
    padding is zero and ``lengths`` tells where a row ends."""
    template: Template | None = None
    """None: the tokenizer's chat template."""
    last_is_normed: bool = True
    """Whether the last of ``hidden_states`` is read behind the model's last norm."""
    equal_lengths: bool = False
    """Texts of unequal length never share a forward: padding would shift the image's positions."""
