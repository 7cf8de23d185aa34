"""Config files of a base, and what of it is downloaded: of a local folder its own, of a known hub
id those that ship here, so that a plan needs no network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dopsd.config import RunConfig
from dopsd.errors import ModelError
from dopsd.files.storage import is_remote
from dopsd.models import FAMILIES
from dopsd.models.hub import hub_errors
from dopsd.models.pretrained import part_config, resolve_base, resolve_vlm
from dopsd.models.stored import stored_bytes
from dopsd.plan.architecture import Architecture, architecture
from dopsd.plan.encoder import Encoder, encoder
from dopsd.readers import Object, read_json

_SHIPPED = Path(__file__).parent / "bases"
_KNOWN = Path(__file__).parent / "known.json"


@dataclass(frozen=True)
class Base:
    """Everything of a run's models that a plan is made from."""

    transformer: Architecture
    encoder: Encoder
    """Text encoder, or the VLM that stands for it."""
    latent_pixels: int
    """Pixels along a side of one position of the latents."""
    download_gb: float | None
    """Of a node that loads every part, off the hub or S3; None: not known. A local folder's is 0.
    """
    gated: tuple[str, ...]
    """Hub ids whose licence has to be accepted first, by a token of the user."""


def base_of(config: RunConfig) -> Base:
    """Raises ModelError for a base or VLM whose config files are not to be had, in one line."""
    model = config.model
    where, revision = shipped_folder(resolve_base(model.base)), model.revision
    transformer = part_config(where, "transformer", revision)
    ids = [model.base]
    if config.separate_vlm:
        vlm = resolve_vlm(where, model.vlm, revision)
        language = _vlm_config(vlm, model.vlm_revision)
        ids.append(model.vlm if model.vlm and is_remote(model.vlm) else vlm)
    else:
        language = part_config(where, "text_encoder", revision)
    known = {name: entry for name, entry in _known().items() if name in ids}
    remote = [name for name in ids if name != "shapes" and not Path(name).expanduser().is_dir()]
    sizes = [sum(known[name]["download_gb"].values()) for name in remote if name in known]
    sizes += [stored_bytes(name, "model.base") / 1e9 for name in remote if is_remote(name)]
    try:
        return Base(
            architecture(model.family, transformer),
            encoder(language),
            FAMILIES[model.family](where, revision).latent_pixels,
            sum(sizes) if len(sizes) == len(remote) else None,
            tuple(name for name in remote if known.get(name, {}).get("gated")),
        )
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"model.base: {model.base}: its config files lack {error}, which a plan is made from"
        ) from None


def downloads() -> dict[str, float]:
    """GB of each known hub id, all of its parts that a run loads."""
    return {name: sum(entry["download_gb"].values()) for name, entry in _known().items()}


def shipped_folder(base: str) -> str:
    """The config files of a known hub id that ship here, else what ``base`` says."""
    shipped = _SHIPPED / base
    return str(shipped) if shipped.is_dir() else base


def _vlm_config(vlm: str, revision: str | None) -> dict[str, Any]:
    folder = Path(shipped_folder(vlm))
    if folder.is_dir():
        path = folder / "config.json"
        return read_json(str(path), Object, ModelError, where=f"model.vlm: {path}")
    from huggingface_hub import hf_hub_download

    with hub_errors("model.vlm", vlm, revision):
        file = hf_hub_download(vlm, "config.json", revision=revision)
    return read_json(file, Object, ModelError, where=f"model.vlm: {file}")


def _known() -> dict[str, Any]:
    return read_json(str(_KNOWN), Object, ModelError, where=str(_KNOWN))
