"""What the vision-language model is asked about a picture."""

from __future__ import annotations

from dopsd.errors import ConfigError

_LENGTHS = {
    "short": "in at most ten words: the main subject and what it does",
    "medium": "in one sentence of at most thirty words: the main subject, what it does, and where",
    "detailed": (
        "in one paragraph of at most a hundred words: the main subject with its shape, colours and "
        "details, its pose, the surroundings, light, composition and style"
    ),
}
"""By caption key, what is asked where nobody asks something else."""
_RULE = (
    "Say only what can be seen, plainly, without any introduction. Answer with the caption alone."
)


def question_for(key: str, asked: str | None, subject: str | None) -> str:
    """The question whose answer is the caption ``key``; ``asked`` stands in its place.

    ``subject``: what the caption shall call the main subject. Raises ConfigError for a key that
    says nothing about its captions, without ``asked``.
    """
    if asked is None and key not in _LENGTHS:
        raise ConfigError(
            f"--key: {key!r} without a question of its own, allowed: {', '.join(_LENGTHS)}, or "
            "any with --question"
        )
    for option, text in (("--question", asked), ("--subject", subject)):
        if text is not None and not text.strip():
            raise ConfigError(f"{option}: an empty text, allowed: words")
    question = asked or f"Write a caption of this picture {_LENGTHS[key]}. {_RULE}"
    if subject:
        question += f' Call the main subject "{subject}", in exactly these characters.'
    return question
