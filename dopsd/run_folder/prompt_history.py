"""Which own prompts are drawn: what history.json says of them, while a run trains and after."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, Field

from dopsd import storage
from dopsd.config import RunConfig
from dopsd.errors import DataError
from dopsd.readers import read_json
from dopsd.run_folder.outputs import owned
from dopsd.run_folder.preview_files import HISTORY, kept_versions, prompt_path

Drawn = tuple[int, int]
"""(version, index of the prompt)."""


def drawn_while_training(config: RunConfig) -> bool:
    """Whether inference workers draw the own prompts: those that roll out a student that can be put
    on their base, which is the one that pictures are drawn with."""
    return (
        bool(config.preview.prompts)
        and config.source == "disaggregated"
        and config.method.objective == "dopsd"
        and config.adapters != "full"
        and (not config.model.merge or config.model.draw_merged)
    )


def drawn_versions(config: RunConfig) -> list[int]:
    """Versions that are drawn before the end, which draws the last one."""
    return [0, *kept_versions(config)]


class _Text(BaseModel):
    prompt: str


class _Picture(BaseModel):
    version: Annotated[int, Field(ge=0)]
    prompt: Annotated[int, Field(ge=0)]


class _History(BaseModel):
    prompts: list[_Text] = []
    pictures: list[_Picture] = []
    sampler: dict[str, int] = {}


def prompt_facts(
    config: RunConfig, size: tuple[int, int], drawn: Iterable[Drawn]
) -> dict[str, Any]:
    """The entries of history.json on own prompts: which are ``drawn``, and how: ``size`` is
    (height, width) in pixels."""
    return {
        "prompts": [{"prompt": prompt} for prompt in config.preview.prompts],
        "pictures": [{"version": v, "prompt": index} for v, index in sorted(drawn)],
        "sampler": {"steps": config.sampler_steps, "height": size[0], "width": size[1]},
    }


def drawn_prompts(config: RunConfig, size: tuple[int, int]) -> set[Drawn]:
    """What a run has drawn of its own prompts that ``config`` would draw again as it is: by the
    same sampler, of the same text. Raises StorageError."""
    own = owned(config.run.folder)
    if HISTORY not in own.entries() or not storage.exists(own.file(HISTORY)):
        return set()
    try:
        history = read_json(own.file(HISTORY), _History)
    except DataError:  # it is written anew
        return set()
    now = prompt_facts(config, size, ())
    if history.sampler != now["sampler"]:
        return set()
    texts = [each.prompt for each in history.prompts]
    same = {i for i, text in enumerate(config.preview.prompts) if texts[i : i + 1] == [text]}
    drawn = {(each.version, each.prompt) for each in history.pictures if each.prompt in same}
    names = {each: prompt_path(*each) for each in drawn}
    gone = set(own.replaced(names.values()))
    return {
        each
        for each, name in names.items()
        if name in own.entries() and name not in gone and storage.exists(own.file(name))
    }
