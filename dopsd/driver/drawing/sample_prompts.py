"""`preview.prompts`: read and judged before anything starts, so that a run that has trained can
draw them."""

from __future__ import annotations

from dopsd import shown
from dopsd.config import RunConfig
from dopsd.config.rules import check_rules
from dopsd.contexts.lengths import TextLength
from dopsd.errors import ConfigError, DataError
from dopsd.models.families.family import Family
from dopsd.readers import read_text

MOST = 64
"""Prompts: each is drawn under every adapter that is kept."""
_KEY = "preview.prompts"


def with_sample_prompts(config: RunConfig, family: Family) -> RunConfig:
    """The same config with the prompts themselves in place of the file that holds them: a run is
    repeated, and drawn on another machine, without it.

    Raises ConfigError in one line for a file that cannot be read, and for a prompt that the base
    cannot draw: empty, with a special token, or longer than what it reads.
    """
    prompts, where = config.preview.prompts, _KEY
    if isinstance(prompts, str):
        where = f"{_KEY} {prompts}"
        prompts = _read(prompts, where)
    if not prompts:
        return config
    if len(prompts) > MOST:
        raise ConfigError(f"{where}: {len(prompts)} prompts, allowed: at most {MOST}")
    length = TextLength(family, config.context.text_tokens)
    for number, prompt in enumerate(prompts, 1):
        if problem := _problem(prompt, length):
            raise ConfigError(f"{where}: prompt {number} {problem}")
    config = config.model_copy(deep=True)
    config.preview.prompts = prompts
    try:
        check_rules(config)  # of texts from a file, too, a config takes no control characters
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return config


def _read(path: str, where: str) -> list[str]:
    """The lines of a text file, those without any text left out."""
    if not path.strip():
        raise ConfigError(f"{_KEY}: an empty text, allowed: a list of prompts, or a text file")
    # Not splitlines: it would cut at U+2028 and its like, which a prompt may hold.
    lines = read_text(path, ConfigError, where).split("\n")
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise ConfigError(f"{where}: no prompt in it, allowed: one a line")
    return prompts


def _problem(prompt: str, length: TextLength) -> str | None:
    """Why the base cannot draw it as it stands."""
    if not prompt.strip():
        return "is empty, allowed: a text"
    try:
        tokens = length.tokens_if_cut(prompt)
    except DataError as error:
        return f"({shown.value(prompt)}): {error}"
    if tokens is None:
        return None
    return (
        f"({shown.value(prompt[:40])}) has {tokens - length.empty} tokens, allowed: "
        f"{length.limit - length.empty} at most, which is what the base reads"
    )
