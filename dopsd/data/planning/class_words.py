"""Captions with a concept's class word in place of the token that names its instance.

"a photo of [V] on grass" becomes "a photo of dog on grass" where the class word is `dog`, and
"a [V] dog" becomes "a dog": what the base knew under such captions is to be kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from dopsd import shown
from dopsd.config import RunConfig
from dopsd.data.manifest import Manifest
from dopsd.data.planning.captions import every_prompt
from dopsd.data.planning.order import check_concepts
from dopsd.errors import DataError

_LETTER = r"[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]"
"""What belongs to the word beside it. Chinese, Japanese and Korean write the next word, or its
particle, without a space."""


def whole_word(word: str) -> str:
    """A regular expression of ``word`` where it is no part of a longer one."""
    return rf"(?<!{_LETTER}){re.escape(word)}(?!{_LETTER})"


@lru_cache(maxsize=256)
def _named(token: str, class_word: str) -> re.Pattern[str]:
    """The token, with the class word where that follows it."""
    return re.compile(rf"{whole_word(token)}(?:\s*((?i:{re.escape(class_word)}))(?!{_LETTER}))?")


@dataclass(frozen=True)
class ClassWords:
    """The class word of all concepts, or of some by their names, and the token that it replaces."""

    token: str
    words: str | tuple[tuple[str, str], ...]

    @classmethod
    def from_config(cls, config: RunConfig) -> ClassWords | None:
        """None where the run preserves nothing."""
        words = config.data.preservation.class_word
        if words is None:
            return None
        return cls(config.data.token, words if isinstance(words, str) else tuple(words.items()))

    def caption(self, caption: str, concept: str | None) -> str:
        """``caption`` with the class word; as it is where it has no token or its concept no word.

        The token is replaced as a whole word; a class word that follows it stays as it is written.
        """
        word = self.words if isinstance(self.words, str) else dict(self.words).get(concept or "")
        if word is None:
            return caption
        return _named(self.token, word).sub(lambda found: found[1] or word, caption)


def check_class_words(
    config: RunConfig,
    manifest: Manifest,
    captions: Iterator[tuple[str | None, dict[str, str]]],
    *,
    alone: bool = False,
) -> None:
    """Raises DataError for a class word of a concept that is not in the data, and where no caption
    that the student may read holds the token: of any concept that was given a word by its name, or
    of any at all where they train ``alone``, as a library's do; else of all of them together.
    ``manifest``: of all the data; ``captions``: (concept, captions) of the samples that train."""
    words = ClassWords.from_config(config)
    if words is None:
        return
    named = config.data.preservation.concepts
    check_concepts("data.preservation.class_word", named, manifest.concepts)
    keys, pairs = config.data.caption_keys, config.context.prompt_pairs
    each = alone or bool(named)
    found: dict[str | None, bool] = {}
    for concept, texts in captions:
        if (named and concept not in named) or found.get(concept):
            continue
        prompts = (prompt for prompt, _ in every_prompt(texts, keys, pairs, 0.0))
        found[concept] = any(words.caption(prompt, concept) != prompt for prompt in prompts)
        if found[concept] and not each:
            return
    lacking = [concept for concept, holds in found.items() if not holds]
    if found and not lacking:
        return
    whose = "no caption of its concepts" if named and not found else "no caption"
    if each and lacking and lacking[0] is not None:
        more = f" (and of {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        whose = f"no caption of concept {shown.value(lacking[0])}{more}"
    raise DataError(
        f"data.preservation.class_word: given, but {whose} holds {shown.value(words.token)} as a "
        "word, which it would replace; allowed: data.token as the captions have it"
    )
