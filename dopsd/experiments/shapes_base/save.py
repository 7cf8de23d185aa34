"""Write the trained parts as a stock pipeline folder, with its hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from dopsd.experiments.shapes_base import nets
from dopsd.experiments.shapes_base.base import Base
from dopsd.experiments.shapes_base.nets import Transformer, Vae
from dopsd.ownership.ownership import OwnedFolder

# Files of a repository stay small; the library reads the shards back through their index.
SHARD = "3MB"
LIMIT = 12_000_000
HASH_FILE = "sha256.txt"
UNDISTILLED = "transformer_undistilled"
LOG = "build.log"
CARD = "card.json"
CARD_PAGE = "README.md"
_MADE = (
    *("vae/", "text_encoder/", "tokenizer/", "transformer/", "scheduler/", "vlm/"),
    *(f"{UNDISTILLED}/", "model_index.json", HASH_FILE),
)


def write_pipeline(
    folder: Path,
    vae: Vae,
    base: Base,
    turbo: Transformer | None = None,
) -> Path:
    """Write ``folder`` anew: the pipeline, ``vlm/`` beside it, and the hash of all weights.

    Card and logs of an existing ``folder`` are kept. ``base`` holds text encoder, VLM and the
    undistilled transformer. ``turbo``: the few-step transformer, which then is the pipeline's, with
    the undistilled one beside it; without it the base's own is the pipeline's. Raises ValueError if
    the result is larger than 12 MB.
    """
    own = owned(folder)
    own.check(*_MADE)
    own.remove(own.entries())
    own.claim(*_MADE)
    transformer = base.transformer if turbo is None else turbo
    half = torch.bfloat16
    pipeline = nets.make_pipeline(
        _copy_vae(vae).to(half), base.vlm.to(half), transformer.to(half), base.tokenizer
    )
    pipeline.save_pretrained(folder, max_shard_size=SHARD)
    if turbo is not None:
        base.transformer.to(half).save_pretrained(folder / UNDISTILLED, max_shard_size=SHARD)
    base.vlm.save_pretrained(folder / "vlm", max_shard_size=SHARD)
    nets.make_image_processor().save_pretrained(folder / "vlm")
    base.tokenizer.save_pretrained(folder / "vlm")
    (folder / HASH_FILE).write_text(weights_hash(folder) + "\n")
    own.adopt(*_made_files(folder))
    size = folder_size(folder)
    if size > LIMIT:
        raise ValueError(f"{folder} has {size} bytes, more than the {LIMIT} that are shipped")
    return folder


def owned(folder: Path, key: str = "--out") -> OwnedFolder:
    """The weights folder and its record; one of a dopsd that kept none is ours by its hash.

    ``key``: what a refusal calls it.
    """
    own, hashed = OwnedFolder(str(folder), "base", key), folder / HASH_FILE
    known = own.record() is not None or not hashed.is_file()
    if not known and hashed.read_text().strip() == weights_hash(folder):
        names = (name for name in (*_MADE, LOG, CARD, CARD_PAGE) if (folder / name).exists())
        own.adopt(*names, *_made_files(folder))
    return own


def _made_files(folder: Path) -> list[str]:
    """All that lies in the parts of the pipeline, by path inside the folder."""
    parts = (folder / name for name in _MADE if name.endswith("/"))
    found = (path for part in parts for path in part.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _copy_vae(vae: Vae) -> Vae:
    # Not the folder it was loaded from: that is nobody's business but the builder's.
    config = {key: value for key, value in vae.config.items() if key != "_name_or_path"}
    copy = AutoencoderKL.from_config(config)
    copy.load_state_dict(vae.state_dict())
    return copy.eval()


def weights_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of all safetensors files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def folder_size(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
