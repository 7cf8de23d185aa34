"""One VLM that serves both contexts: its language model carries the text encoder's weights.

The 4B language weights are in memory once: the text encoder's shards are copied into the VLM's
language model tensor by tensor, and the text encoder itself is never built.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dopsd.errors import ModelError
from dopsd.models.hub import hub_errors, hub_problem
from dopsd.models.weight_index import WeightIndex
from dopsd.readers import read_json


def load_vlm(
    vlm: str,
    dtype: torch.dtype,
    device: torch.device | str,
    revision: str | None = None,
    like: Any = None,
) -> Any:
    """The VLM's backbone (no language head), frozen, in eval mode.

    ``vlm``: local folder or hub id (at ``revision``). ``like``: config of the text encoder whose
    weights the language model will carry; it then computes as that encoder does. Raises
    ModelError when the VLM cannot be loaded or has no image branch.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(vlm, revision=revision)
        if like is not None:
            _compute_like(config, like)
        model = AutoModelForImageTextToText.from_pretrained(
            vlm, config=config, dtype=dtype, revision=revision, use_safetensors=True
        ).model
    except (OSError, ValueError) as error:
        if not Path(vlm).is_dir() and (problem := hub_problem(error, vlm, revision)):
            raise ModelError(f"model.vlm: {problem}") from error
        reason = str(error).partition("\n")[0]
        raise ModelError(f"model.vlm: {vlm} is no image-text model ({reason})") from error
    for part in ("visual", "language_model"):
        if not hasattr(model, part):
            raise ModelError(f"model.vlm: {vlm} ({type(model).__name__}) has no `{part}`")
    return model.requires_grad_(False).eval().to(device)


def _compute_like(config: Any, encoder: Any) -> None:
    """What weights alone do not carry: rotary base, norm epsilon and activation.

    Qwen3-VL's rotary base is not that of Qwen3, so features computed under the VLM's own would
    not be the pipeline's. Both contexts use the encoder's: its weights were trained under it.
    """
    text = config.get_text_config()
    text.rope_parameters = {
        **text.rope_parameters,
        "rope_theta": encoder.rope_parameters["rope_theta"],
    }
    for name in ("rms_norm_eps", "hidden_act"):
        setattr(text, name, getattr(encoder, name))


def carry_text_encoder(language_model: nn.Module, base: str, revision: str | None) -> int:
    """Copy the pipeline's text encoder weights into ``language_model``, in place.

    Returns the number of tensors copied. Raises ModelError naming the tensors when one does not
    fit, or when one of the language model's is not covered.
    """
    targets = dict(language_model.named_parameters())
    copied = set()
    for name, tensor in _tensors(_encoder_folder(base, revision)):
        name = name.removeprefix("model.").removeprefix("language_model.")
        if name == "lm_head.weight":
            continue
        if name not in targets:
            raise ModelError(f"model.vlm: the text encoder's {name} is not in its language model")
        if targets[name].shape != tensor.shape:
            raise ModelError(
                f"model.vlm: {name} is {list(targets[name].shape)} in its language model, "
                f"{list(tensor.shape)} in the text encoder of {base}"
            )
        with torch.no_grad():
            targets[name].copy_(tensor)
        copied.add(name)
    if missing := sorted(targets.keys() - copied):
        raise ModelError(
            f"model.vlm: the text encoder of {base} has no {missing[0]} "
            f"({len(missing)} tensors of the language model are not covered)"
        )
    return len(copied)


def _encoder_folder(base: str, revision: str | None) -> Path:
    folder = Path(base) / "text_encoder"
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    with hub_errors("model.base", base, revision):
        root = snapshot_download(base, revision=revision, allow_patterns=["text_encoder/*"])
    return Path(root) / "text_encoder"


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    index = sorted(folder.glob("*.safetensors.index.json"))
    if index:
        weights = read_json(str(index[0]), WeightIndex, ModelError).weight_map
        files = sorted(set(weights.values()))
    else:
        files = sorted(file.name for file in folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: no safetensors files")
    for file in files:
        with safe_open(str(folder / file), framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - a safetensors handle, not a dict
                yield name, shard.get_tensor(name)
