"""What a benchmark trains: the shapes world, on its own base or on one where compute counts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dopsd.config import RunConfig
from dopsd.models.families.family import DTYPES
from dopsd.shapes import weights_path


@dataclass(frozen=True)
class Size:
    """``width`` and ``layers`` of the transformer; None is the shipped one's."""

    batch: int
    steps: int
    warm_up: int
    """Steps that are trained and not counted: caches fill and the first wait covers the start."""
    width: int | None = None
    layers: int | None = None
    head: int = 32
    """Width of an attention head."""


SIZES = {
    "tiny": Size(batch=8, steps=60, warm_up=20),
    "medium": Size(batch=4, steps=8, warm_up=3, width=768, layers=5),
}
"""``medium``: about 60 million weights, drawn at random and not trained. What is measured is time,
which weights do not change."""
_SEED = 0


def base_of(size: Size, folder: Path) -> str:
    """A pipeline of the shapes world with a transformer of ``size``, written to ``folder`` once."""
    if size.width is None:
        return "shapes"
    # From diffusers itself, which takes seconds to import.
    from diffusers import ZImageTransformer2DModel

    done = folder / "model_index.json"
    if done.exists():
        return str(folder)
    shipped = weights_path()
    for part in ("vae", "text_encoder", "tokenizer", "scheduler", "vlm"):
        shutil.copytree(shipped / part, folder / part, dirs_exist_ok=True)
    values = dict(ZImageTransformer2DModel.load_config(shipped / "transformer"))
    heads = size.width // size.head
    values |= {"dim": size.width, "n_layers": size.layers, "n_heads": heads, "n_kv_heads": heads}
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        transformer: Any = ZImageTransformer2DModel.from_config(values)
        for parameter in transformer.parameters():  # some are left as they come from memory
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.02)
            else:
                torch.nn.init.ones_(parameter)
    transformer.to(DTYPES["bfloat16"]).save_pretrained(folder / "transformer")
    shutil.copy(shipped / "model_index.json", done)  # last: it says that all is there
    return str(folder)


def config_of(size: Size, base: str, folder: str, row: dict[str, Any]) -> RunConfig:
    """The run of a row, which keeps everything in ``folder``; all rows share its shards."""
    values: dict[str, Any] = {
        "run": {"name": f"benchmark {row['name']}", "folder": f"{folder}/{row['name']}"},
        "model": {"base": base, "vlm": f"{weights_path() / 'vlm'}", "dtype": "float32"},
        "context": {"image_min_pixels": 16384, "image_max_pixels": 16384},
        "data": {
            "source": "shapes:bars",
            "shards": f"{folder}/shards",
            "shapes_count": 12,
            "pixel_area": 1024,
            "bucket_multiple": 4,
            "rows_per_group": 4,
            "groups_per_shard": 4,
        },
        "method": {"steps": 4},
        "lora": {"rank": 16, "alpha": 32},
        "device": "cpu",
        "encoder": {"cpus": 0.2},
        "rollout": {"cpus": 0.3},
        "teacher": {"cpus": 0.3},
        "learner": {
            "cpus": 0.4,
            "steps": size.steps,
            "global_batch": size.batch,
            "micro_batch": size.batch,
            "lr": 5e-4,
        },
        "preview": {"samples": 0},
        "preflight": {"mode": "off"},
    }
    return RunConfig.model_validate(values | row["keys"])
