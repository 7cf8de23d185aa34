"""Which own prompts are drawn: what history.json says of them, while a run trains and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from dopsd.config import RoleSection, RunConfig
from dopsd.errors import DataError
from dopsd.files import storage
from dopsd.ownership.ownership import FileDigest
from dopsd.readers import read_json
from dopsd.run_folder.outputs import owned
from dopsd.run_folder.preview_files import HISTORY, PROMPTS, kept_versions, prompt_path

Drawn = tuple[int, int]
"""(version, index of the prompt)."""


def drawn_while_training(config: RunConfig) -> bool:
    """Whether inference workers draw the own prompts: those that roll out a student that can be put
    on their base, which is the one that pictures are drawn with, and have a GPU's room for it."""
    return (
        bool(config.preview.prompts)
        and config.source == "disaggregated"
        and config.method.objective == "dopsd"
        and config.adapters != "full"
        and (not config.model.merge or config.model.draw_merged)
        and not _beside_a_transformer(config)
    )


def _beside_a_transformer(config: RunConfig) -> bool:
    """Whether another one fits beside a rollout worker's on its GPU: it may need its most just when
    a picture does. An encoder there is small, and counted (``plan/demand.py``)."""
    part = config.rollout.gpus
    if config.device == "cpu" or not part or part >= 1:
        return False
    others: list[RoleSection] = [config.learner]
    if config.rollout.workers > 1:
        others.append(config.rollout)
    if not config.inference.shared:
        others.append(config.teacher)
    return any(other.gpus and part + other.gpus <= 1 + 1e-6 for other in others)


def drawn_versions(config: RunConfig) -> list[int]:
    """Versions that are drawn before the end, which draws the last one."""
    return [0, *kept_versions(config)]


class _Text(BaseModel):
    prompt: str


class _Picture(BaseModel):
    version: Annotated[int, Field(ge=0)]
    prompt: Annotated[int, Field(ge=0)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="allow")  # it is written again as it is

    version: Annotated[int, Field(ge=0)]


class _History(BaseModel):
    samples: list[dict[str, Any]] = []
    rows: list[_Row] = []
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


def _read(config: RunConfig, entries: Mapping[str, FileDigest | None]) -> _History | None:
    """None without a history of ours that can be read: it is written anew."""
    file = owned(config.run.folder).file(HISTORY)
    if HISTORY not in entries or not storage.exists(file):
        return None
    try:
        return read_json(file, _History)
    except DataError:
        return None


def drawn_samples(config: RunConfig, step: int) -> dict[str, Any]:
    """The entries of history.json on samples, which are drawn at the end of a run: of an extended
    one they are there before, and those of versions up to ``step`` stay. Raises StorageError."""
    history = _read(config, owned(config.run.folder).entries()) or _History()
    rows = [row.model_dump() for row in history.rows if row.version <= step]
    return {"samples": history.samples, "rows": rows}


def drawn_prompts(config: RunConfig, size: tuple[int, int]) -> set[Drawn]:
    """What a run has drawn of its own prompts that ``config`` would draw again as it is: by the
    same sampler, of the same text. Raises StorageError.

    Of pictures on S3 sizes alone are compared: a coordinator that starts waits for this, and there
    may be thousands.
    """
    own = owned(config.run.folder)
    entries = own.entries()
    history = _read(config, entries)
    now = prompt_facts(config, size, ())
    if history is None or history.sampler != now["sampler"]:
        return set()
    texts = [each.prompt for each in history.prompts]
    same = {i for i, text in enumerate(config.preview.prompts) if texts[i : i + 1] == [text]}
    drawn = {(each.version, each.prompt) for each in history.pictures if each.prompt in same}
    sizes = {f"{PROMPTS}/{name}": size for name, size in storage.list_files(own.file(PROMPTS))}
    names = {}
    for each in drawn:
        name = prompt_path(*each)
        if name in entries and name in sizes:
            digest = entries[name]
            if digest is None or digest.bytes == sizes[name]:
                names[each] = name
    if storage.is_remote(config.run.folder):
        return set(names)
    gone = set(own.replaced(names.values()))
    return {each for each, name in names.items() if name not in gone}
