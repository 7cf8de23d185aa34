"""The picture grid: the same prompts and noise, drawn by the base and by each variant's LoRA."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from dopsd.evaluation.generate import generate
from dopsd.models import FAMILIES
from dopsd.report.sheet import contact_sheet
from dopsd.shapes.concepts import concept_prompts, prior_prompts
from dopsd.shapes.world import PIXELS

ROWS = 3
_STEPS = 4
_SEED = 2000


def generate_grid(concept: str, loras: Sequence[tuple[str, str | None]]) -> Image.Image:
    """Three prompts with ``[V]``, then three that the base knew; one column for each LoRA.

    ``loras``: (title, file or None for the base) of each column.
    """
    prompts = [p.text for p in concept_prompts(concept, ROWS, _SEED)]
    prompts += [p.text for p in prior_prompts(ROWS, _SEED)]
    family = FAMILIES["z_image"]("shapes")
    columns = [
        list(generate(family, prompts, file, _STEPS, PIXELS, PIXELS, _SEED, "float32", "cpu"))
        for _, file in loras
    ]
    rows = [[column[row] for column in columns] for row in range(len(prompts))]
    return contact_sheet([title for title, _ in loras], rows, prompts)
