"""Weights of a transformer that are no LoRA: whole folders, bound in place file by file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from dopsd import shown
from dopsd.errors import ModelError
from dopsd.files import storage
from dopsd.models.lora.layers import bind_parameters
from dopsd.models.weight_index import WeightIndex
from dopsd.readers import Object, read_json

CONFIG, INDEX = "config.json", "diffusion_pytorch_model.safetensors.index.json"
_SINGLE = "diffusion_pytorch_model.safetensors"


def is_transformer(folder: str) -> bool:
    """Whether diffusers would load a model from the folder (local or s3://)."""
    return storage.exists(storage.join(folder, CONFIG))


def transformer_files(folder: str, kind: str) -> list[str]:
    """Paths of the weights of a transformer folder, each once.

    Raises ModelError unless it holds a ``kind``, a transformer class of diffusers.
    """
    config, named = storage.join(folder, CONFIG), "nothing"
    if storage.exists(config):
        values = read_json(config, Object, ModelError)
        named = shown.value(values.get("_class_name", "nothing"), quoted=False)
    if named != kind:
        raise ModelError(f"{folder}: found {named}, expected a folder with a {kind}")
    index = storage.join(folder, INDEX)
    names = {_SINGLE}
    if storage.exists(index):
        names = set(read_json(index, WeightIndex, ModelError).weight_map.values())
    paths = [storage.join(folder, name) for name in sorted(names)]
    for path in paths:
        if not storage.exists(path):
            raise ModelError(f"{path}: no such file of weights")
    return paths


def digest_of(paths: Iterable[str]) -> str:
    """SHA-256 over the files, of which no more than a part is in memory."""
    digest = hashlib.sha256()
    for path in paths:
        for part in storage.read_parts(path):
            digest.update(part)
    return digest.hexdigest()


def bind_files(transformer: Any, what: str, files: Iterable[Callable[[], bytes]]) -> None:
    """Copy the weights of all ``files`` into the transformer, one file at a time; ``what`` names
    them to the user. Raises ModelError unless together they are all of its weights."""
    own = dict(transformer.named_parameters())
    try:
        for read in files:
            state = load(read())
            bind_parameters({name: own.pop(name) for name in list(state) if name in own}, state)
    except (SafetensorError, ModelError) as error:
        raise ModelError(f"{what}: no weights of this base ({error})") from None
    if own:
        raise ModelError(f"{what}: {len(own)} weights missing, e.g. {min(own)}")


def bind_folder(transformer: Any, folder: str, kind: str) -> None:
    """Copy the weights of a transformer folder (local or s3://) into a transformer, a ``kind``.
    Raises ModelError as :func:`transformer_files` and :func:`bind_files` do."""
    paths = transformer_files(folder, kind)
    bind_files(transformer, folder, [partial(storage.read_bytes, path) for path in paths])
