"""Weights from a local folder or the hub, and one clear reason when they are not available."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dopsd import shown
from dopsd.errors import DopsdError, ModelError, message_line
from dopsd.files import storage
from dopsd.models.hub import hub_errors, hub_problem
from dopsd.models.stored import local_copy
from dopsd.readers import Object, read_json


class MissingWeights(ModelError):
    """A model's weights or libraries are not available; the message says which and why."""


@contextmanager
def missing_weights_errors(who: str, model: str) -> Iterator[None]:
    """Turn a library's failure to find or read weights into one MissingWeights line."""
    try:
        yield
    except MissingWeights:
        raise
    except ModelError as error:  # the hub's own line
        raise MissingWeights(str(error)) from None
    except (OSError, ImportError, ValueError, KeyError) as error:
        if problem := hub_problem(error, model):
            raise MissingWeights(f"{who}: {model} is not available ({problem})") from None
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise MissingWeights(
            f"{who}: {model} is not available ({type(error).__name__}: {reason.strip()})"
        ) from None


@contextmanager
def loading_errors(base: str) -> Iterator[None]:
    """Turn whatever a library says of files that it cannot load into one ModelError that names the
    base; what is no fault of the files stays what it is."""
    try:
        yield
    except (DopsdError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # diffusers and transformers raise many kinds
        if not os.path.isdir(base) and (problem := hub_problem(error, base)):
            raise ModelError(f"model.base: {problem}") from error
        raise ModelError(
            f"{base}: cannot be loaded: {type(error).__name__}: {message_line(error)}"
        ) from error


def check_config(who: str, model: str) -> None:
    """Raise MissingWeights unless the folder or hub id has a ``config.json`` that can be read."""
    folder = os.path.expanduser(model)
    if os.path.isdir(folder):
        if not os.path.isfile(os.path.join(folder, "config.json")):
            raise MissingWeights(f"{who}: {model} has no config.json")
        return
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise MissingWeights(f"{who}: {model} is no folder and no hub id (owner/name)")
    from huggingface_hub import hf_hub_download

    with missing_weights_errors(who, model), hub_errors(who, model):
        hf_hub_download(model, "config.json")


INDEX = "model_index.json"
_VLMS = {
    (2048, 28): "Qwen/Qwen3-VL-2B-Instruct",
    (2560, 36): "Qwen/Qwen3-VL-4B-Instruct",
    (4096, 36): "Qwen/Qwen3-VL-8B-Instruct",
}
"""By width and layers of the language model, which is that of Qwen3-1.7B, 4B and 8B."""


def resolve_base(base: str, key: str = "model.base") -> str:
    """``shapes`` is the embedded world; an existing folder or a hub id is itself; of a model on S3
    it is this node's copy (models/stored.py).

    ``key`` names the base to the user. Raises ModelError for a path-like name that is no folder,
    and as ``local_copy`` does.
    """
    if base == "shapes":
        from dopsd.shapes import weights_path

        return str(weights_path())
    return _checked_name(base, key, "no folder, no hub id (owner/name), no s3://, not 'shapes'")


def portable_base(base: str, key: str = "model.base") -> str:
    """As :func:`resolve_base`, for a process on another node, which makes its own copy of what lies
    on S3."""
    folder = resolve_base(base, key)
    return base if storage.is_remote(base) else folder


def _checked_name(model: str, key: str, problem: str) -> str:
    if storage.is_remote(model):
        return local_copy(model, key)
    folder = os.path.expanduser(model)
    if os.path.isdir(folder):
        return folder
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ModelError(f"{key}: {model!r} is {problem}")
    return model


def resolve_vlm(base: str, vlm: str | None, revision: str | None = None) -> str:
    """The VLM's folder (this node's copy of one on S3) or hub id. By default the folder ``vlm``
    inside the base's folder, else the Qwen3-VL whose language model has the size of the base's text
    encoder (at ``revision``).

    Raises ModelError when there is none.
    """
    if vlm is not None:
        return _checked_name(vlm, "model.vlm", "no folder, no hub id (owner/name), no s3://")
    base = resolve_base(base)
    folder = Path(base) / "vlm"
    if folder.is_dir():
        return str(folder)
    try:
        config = part_config(base, "text_encoder", revision)
        described = f"{config['hidden_size']} wide and {config['num_hidden_layers']} layers deep"
        size = config["hidden_size"], config["num_hidden_layers"]
    except (ModelError, OSError, ValueError, KeyError, TypeError):
        described, size = "of unknown size", (0, 0)
    if size in _VLMS:
        return _VLMS[size]
    raise ModelError(
        f"model.vlm: missing, {base!r} has no folder `vlm`, and its text encoder is {described}; "
        "allowed: a folder, hub id or s3:// of a VLM with a language model of that shape"
    )


def part_config(base: str, subfolder: str, revision: str | None = None) -> dict[str, Any]:
    """``config.json`` of one part of a pipeline, in a local folder or on the hub.

    Raises ModelError for a local one that lacks it.
    """
    return _read_json(base, f"{subfolder}/config.json", revision, "model.base")


def pipeline_config(
    base: str, revision: str | None = None, key: str = "model.base"
) -> dict[str, Any]:
    """``model_index.json`` of a pipeline: its parts, and what it says of itself.

    Raises ModelError, in the name of ``key``, for what is no pipeline.
    """
    return _read_json(base, INDEX, revision, key)


def check_transformer(base: str, kind: str, family: str, revision: str | None, key: str) -> None:
    """Raises ModelError, in the name of ``key``, unless ``base`` is a pipeline whose transformer
    is a ``kind``, the class of ``family``."""
    entry = pipeline_config(base, revision, key).get("transformer")
    named = entry[-1] if isinstance(entry, list) and entry else None
    if named != kind:
        found = "missing" if named is None else shown.value(named, quoted=False)
        raise ModelError(
            f"{key}: {base}: its transformer is {found} ({INDEX}), allowed: a "
            f"pipeline with a {kind}, which the family {family} is"
        )


def _read_json(base: str, file: str, revision: str | None, key: str) -> dict[str, Any]:
    """A config of ``base``; the hub is never asked for what is a local folder."""
    path = Path(base) / file
    if not Path(base).is_dir():
        from huggingface_hub import hf_hub_download

        with hub_errors(key, base, revision):
            path = Path(hf_hub_download(base, file, revision=revision))
    elif not path.is_file():
        raise ModelError(f"{key}: {base}: no {file} in it, allowed: a folder of a pipeline")
    return read_json(str(path), Object, ModelError, where=f"{key}: {path}")
