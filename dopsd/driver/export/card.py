"""The model card of a trained LoRA: what it is, how it was made, how to draw with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dopsd import shown
from dopsd.config import RunConfig
from dopsd.driver.summary import Summary
from dopsd.models import FAMILIES
from dopsd.models.hub import is_hub_id

SHEET = "contact_sheet.png"
WEIGHTS = "pytorch_lora_weights.safetensors"
"""The name that `load_lora_weights(REPO)` looks for."""


@dataclass(frozen=True)
class Licence:
    """Of the base, as the hub says; empty where nobody knows."""

    identifier: str = ""
    name: str | None = None
    link: str | None = None


def public_base(base: str) -> str:
    """A base as others may read of it: a hub id, or the last part of a path."""
    return base if is_hub_id(base) else base.rstrip("/").rpartition("/")[2]


def model_card(
    repository: str,
    config: RunConfig,
    metadata: dict[str, str],
    summary: Summary,
    licence: Licence,
    pictures: bool,
) -> str:
    """The README of a repository: without secrets, and without a path of this machine."""
    from huggingface_hub import ModelCardData

    base = public_base(config.model.base)
    front = ModelCardData(
        base_model=base if is_hub_id(base) else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        license=licence.identifier or None,
        license_name=licence.name,
        license_link=licence.link,
        tags=["text-to-image", "diffusers", "lora", "dopsd"],
    )
    said = licence.name or licence.identifier or "see the base's own page"
    rows: list[tuple[str, Any]] = [
        ("base", base),
        ("licence of the base, which holds for the LoRA too", said),
        ("recipe", metadata.get("dopsd.recipe", "")),
        ("context of the teacher", config.context.name),
        ("optimizer steps", summary.steps),
        ("seconds", round(summary.seconds)),
        ("mean loss, first and last steps", f"{summary.first_loss:.4g}, {summary.last_loss:.4g}"),
        ("fingerprint of the data", metadata.get("dopsd.data", "")[:12]),
        ("dopsd", metadata.get("dopsd.version", "")),
    ]
    more = {"dopsd.merged": "merged into the base first", "dopsd.init": "began from"}
    rows += [(words, metadata[key]) for key, words in more.items() if key in metadata]
    table = "\n".join(f"| {shown.cell(name)} | {shown.cell(value)} |" for name, value in rows)
    picture = f"![target, base, student and teacher from the same noise]({SHEET})\n\n"
    steps = config.preview.steps or config.method.steps
    family = FAMILIES[config.model.family]
    how = {
        "dopsd": f"by on-policy self-distillation (D-OPSD): it keeps the base's {steps} steps",
        "sft": "by supervised fine-tuning",
        "sft_on_teacher": "by supervised fine-tuning on the teacher's pictures",
        "off_policy": "by off-policy distillation",
    }[config.method.objective]
    below = "Load the LoRAs that were merged into the base beside this one.\n\n"
    comfyui = f"ComfyUI reads `{WEIGHTS}` as a LoRA of the model.\n\n"
    return (
        f"---\n{front.to_yaml()}\n---\n\n# {shown.cell(repository.rpartition('/')[2])}\n\n"
        f"A LoRA of {shown.cell(base)}, trained {how}.\n\n"
        f"{picture if pictures else ''}"
        "## How to use it\n\n"
        "```python\n"
        "import torch\n"
        "import diffusers\n\n"
        f"pipe = diffusers.{family.pipeline_class}.from_pretrained(\n"
        f"    {base!r}, dtype=torch.bfloat16\n"
        ').to("cuda")\n'
        f"pipe.load_lora_weights({repository!r})\n"
        f'pipe("your prompt", num_inference_steps={steps}, {family.stock_call}).images[0]\n'
        "```\n\n"
        f"{below if config.model.draw_merged else ''}"
        f"{comfyui if family.comfyui_prefix and not config.lora.dora else ''}"
        f"## How it was made\n\n| | |\n| --- | --- |\n{table}\n"
    )
