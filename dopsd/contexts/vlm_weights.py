"""One VLM that serves both contexts: its language model carries the text encoder's weights.

The language weights are read once: the VLM is built from its own vision tower and from the text
encoder's files; its own language weights are not read, and the text encoder itself is never built.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from dopsd.errors import ModelError
from dopsd.models.hub import hub_errors, hub_problem
from dopsd.models.quantize import for_encoder
from dopsd.models.stored import bring_weights
from dopsd.models.weight_index import WeightIndex
from dopsd.readers import read_json

_LANGUAGE = "language_model."


def load_vlm(
    vlm: str,
    base: str,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    revision: str | None = None,
    base_revision: str | None = None,
    quantize: str = "none",
) -> Any:
    """The VLM's backbone (no language head), frozen, in eval mode, with the language weights of the
    pipeline ``base``; it computes as that one's text encoder does.

    Both are local folders or hub ids. ``quantize``: as ``encoder.quantize``. Raises ModelError when
    the VLM cannot be loaded or has no image branch, and naming the tensors when one of the text
    encoder's does not fit or one of the language model's is not covered.
    """
    from transformers import AutoConfig, AutoModel

    encoder = AutoConfig.from_pretrained(base, subfolder="text_encoder", revision=base_revision)
    config = _vlm_config(vlm, revision)
    _compute_like(config, encoder)
    kind: Any = AutoModel._model_mapping[type(config)]
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in kind(config).named_parameters()}
    for part in ("visual.", _LANGUAGE):
        if not any(name.startswith(part) for name in shapes):
            raise ModelError(f"model.vlm: {vlm} ({kind.__name__}) has no `{part[:-1]}`")
    language = {n.removeprefix(_LANGUAGE): s for n, s in shapes.items() if n.startswith(_LANGUAGE)}
    weights = {
        _LANGUAGE + name: tensor
        for name, tensor in text_encoder_weights(base, base_revision, language).items()
    }
    weights |= _own_weights(vlm, revision, shapes)
    options: dict[str, Any] = {}
    if torch.device(device).type != "cpu":  # tensor by tensor, never whole on the host
        options["device_map"] = {"": str(device)}
    model = kind.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=dtype,
        quantization_config=for_encoder(quantize, dtype),
        **options,
    )
    return model.requires_grad_(False).eval().to(device)


def _vlm_config(vlm: str, revision: str | None) -> Any:
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(vlm, revision=revision)
    except (OSError, ValueError) as error:
        if not Path(vlm).is_dir() and (problem := hub_problem(error, vlm, revision)):
            raise ModelError(f"model.vlm: {problem}") from error
        reason = str(error).partition("\n")[0]
        raise ModelError(f"model.vlm: {vlm} is no image-text model ({reason})") from error
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise ModelError(f"model.vlm: {vlm} is no image-text model ({config.model_type})")
    return config


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


def text_encoder_weights(
    base: str, revision: str | None, shapes: dict[str, torch.Size]
) -> dict[str, Tensor]:
    """The pipeline's text encoder by the names of the VLM's language model, mapped from its files.

    ``shapes``: of that language model. Raises ModelError naming the tensors when one does not fit,
    or when one is missing.
    """
    found = {}
    for name, tensor in _tensors(_folder(base, revision, "text_encoder")):
        name = name.removeprefix("model.").removeprefix(_LANGUAGE)
        if name == "lm_head.weight":
            continue
        if name not in shapes:
            raise ModelError(f"model.vlm: the text encoder's {name} is not in its language model")
        if shapes[name] != tensor.shape:
            raise ModelError(
                f"model.vlm: {name} is {list(shapes[name])} in its language model, "
                f"{list(tensor.shape)} in the text encoder of {base}"
            )
        found[name] = tensor
    if missing := sorted(shapes.keys() - found.keys()):
        raise ModelError(
            f"model.vlm: the text encoder of {base} has no {missing[0]} "
            f"({len(missing)} tensors of the language model are not covered)"
        )
    return found


def _own_weights(
    vlm: str, revision: str | None, shapes: dict[str, torch.Size]
) -> dict[str, Tensor]:
    """What is not its language model's: the vision tower."""
    wanted = {name for name in shapes if not name.startswith(_LANGUAGE)}
    found = {
        name: tensor
        for name, tensor in _tensors(_folder(vlm, revision), "model.", wanted)
        if tensor.shape == shapes[name]
    }
    if missing := sorted(wanted - found.keys()):
        raise ModelError(
            f"model.vlm: {vlm}: its files have no {missing[0]} of the shape of its config "
            f"({len(missing)} tensors of the vision tower are not covered)"
        )
    return found


def _folder(model: str, revision: str | None, part: str = "") -> Path:
    folder = Path(model).expanduser() / part
    if folder.is_dir():
        bring_weights(folder)
        return folder
    from huggingface_hub import snapshot_download

    patterns = [f"{part}/*" if part else "*.safetensors*"]
    with hub_errors("model.base" if part else "model.vlm", model, revision):
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns)) / part


def _tensors(
    folder: Path, prefix: str = "", wanted: set[str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """(name without ``prefix``, tensor) of safetensors files, of ``wanted`` alone where it is
    given: the others are not read."""
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
            for key in shard.keys():  # noqa: SIM118 - a safetensors handle, not a dict
                name = key.removeprefix(prefix)
                if wanted is None or name in wanted:
                    yield name, shard.get_tensor(key)
