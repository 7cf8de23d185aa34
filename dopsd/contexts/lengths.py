"""How much of a text a base reads, told by its tokenizer alone: no weights are loaded."""

from __future__ import annotations

from collections.abc import Iterable

from dopsd.contexts.text import TextEncoder, load_tokenizer
from dopsd.models.families.family import PROMPT_TOKENS, Family

_SHOWN = 5


class TextLength:
    """Counts the tokens of texts as a base reads them, its chat template around them.

    ``asked``: tokens that shall be kept; the base may keep fewer. ``beside``: tokens that stand
    beside each text, e.g. those of an image.
    """

    def __init__(self, family: Family, asked: int = PROMPT_TOKENS, beside: int = 0) -> None:
        self.limit = family.kept_tokens(asked)
        self.tokenizer = load_tokenizer(family)
        self._text = TextEncoder(None, self.tokenizer, family.text_format, self.limit)
        self._beside = beside
        self.empty = self._text.view("").tokens + beside
        """Tokens without any text."""

    def own_tokens(self, text: str) -> int:
        """The tokens of a text itself, without what stands around it."""
        return self._text.view(text).tokens + self._beside - self.empty

    def tokens_if_cut(self, text: str) -> int | None:
        """The tokens of a text that is longer than what is kept; None of one that is read whole.

        Raises DataError for a text that holds a special token.
        """
        self._text.template(text)
        # No tokenizer makes more tokens of a text than it has bytes.
        if len(text.encode()) + self.empty <= self.limit:
            return None
        tokens = self._text.view(text).tokens + self._beside
        return tokens if tokens > self.limit else None


def cut_prompts(family: Family, prompts: Iterable[str]) -> list[str]:
    """Lines that name the prompts of which ``family``'s pipeline reads the beginning alone."""
    length = TextLength(family)
    return [
        f"WARNING: prompt {prompt[:40]!r}... has {tokens} tokens, of which {length.limit} are read"
        for prompt in prompts
        if (tokens := length.tokens_if_cut(prompt))
    ]


def cut_lines(whose: str, cut: dict[str, int], limit: int, looked_at: int) -> list[str]:
    """A warning that counts the samples of which a text is cut, and names the first of them;
    none where there are none. ``cut``: tokens by sample id."""
    if not cut:
        return []
    shown = ", ".join(f"{name} ({tokens} tokens)" for name, tokens in list(cut.items())[:_SHOWN])
    more = f" and {len(cut) - _SHOWN} more" if len(cut) > _SHOWN else ""
    return [
        f"WARNING: {whose} of {len(cut)} of {looked_at} samples are cut at {limit} tokens: "
        f"{shown}{more}"
    ]
