"""What pictures are drawn with: as asked for, and else as the LoRAs' own files say."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dopsd.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

    from dopsd.evaluation.drawn_with import WeightedLora
    from dopsd.models.families.family import Family


STEPS_MOST = 1000


@dataclass(frozen=True)
class Drawing:
    """Weights, and how they are drawn with."""

    family: Family
    loras: list[WeightedLora]
    modules: str | None
    transformer: str | None
    steps: int
    dtype: str
    device: str
    partial: bool

    def pictures(
        self,
        prompts: list[str],
        references: Sequence[str],
        size: tuple[int | None, int | None],
        seed: int,
    ) -> Iterator[Image]:
        """One per prompt, of ``size`` (height, width) pixels, by default 32 on the embedded base
        and else 1024; picture i uses seed ``seed`` + i. Raises a DopsdError before the first."""
        from dopsd.evaluation.generate import generate, read_reference
        from dopsd.ray_cluster.process import use_device
        from dopsd.shapes import weights_path

        side = 32 if self.family.base == str(weights_path()) else 1024
        height, width = (side if given is None else given for given in size)
        if min(height, width) < 1 or seed < 0:
            raise ConfigError(
                f"{width}x{height} pixels, seed {seed}; allowed: sizes from 1, a seed from 0"
            )
        use_device(self.device)
        return generate(
            self.family,
            prompts,
            self.loras,
            self.steps,
            height,
            width,
            seed,
            self.dtype,
            self.device,
            [read_reference(path) for path in references],
            self.modules,
            self.transformer,
            self.partial,
        )


def drawing(
    loras: Sequence[str | os.PathLike[str]] = (),
    *,
    base: str | None = None,
    family: str | None = None,
    revision: str | None = None,
    modules: str | None = None,
    transformer: str | None = None,
    steps: int | None = None,
    dtype: str | None = None,
    partial: bool = False,
    mark: str = "",
) -> Drawing:
    """``loras``: each ``LORA[@WEIGHT]`` of a LoRA file, a run folder (and all that was trained
    there) or LIBRARY:CONCEPT. ``mark`` stands before the names of options in messages.

    What is None is what the LoRAs' files say: base, family and steps; else the embedded base at
    4 steps, in bfloat16 on a GPU and float32 elsewhere. Raises ConfigError, and as the readers of
    LoRAs and bases do.
    """
    import torch

    from dopsd.evaluation.drawn_with import Said, WeightedLora, said_by
    from dopsd.evaluation.evaluated_models import as_trained, evaluated_models, tell_if_unfinished
    from dopsd.library.lora import concept_lora
    from dopsd.models import FAMILIES
    from dopsd.models.families.family import DTYPES

    files = []
    for given in loras:
        lora = WeightedLora.parse(os.fspath(given))
        path = concept_lora(lora.path)
        if path.endswith(".safetensors"):
            tell_if_unfinished(path)
            files.append(lora.at(path))
            continue
        (run,) = map(as_trained, evaluated_models([path]))
        files += [lora.at(own) for own in run.loras]
        if len(loras) > 1 and (run.modules or run.transformer):
            raise ConfigError(f"{mark}lora: {path} is more than a LoRA, allowed: it alone")
        modules, transformer = modules or run.modules, transformer or run.transformer
    named = base is not None
    said = said_by(files, of_one_base=not (named and family is not None)) if files else Said()
    key = f"{mark}base" if named or not said.base else f"{mark}lora {files[0].path}: its base"
    if not named:
        base, revision = said.base or "shapes", revision or said.revision
    if family is None:
        family = said.family or "z_image"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = dtype or ("bfloat16" if device == "cuda" else "float32")
    for option, value, allowed in (("family", family, FAMILIES), ("dtype", dtype, DTYPES)):
        if value not in allowed:
            raise ConfigError(f"{mark}{option}: {value!r}, allowed: {', '.join(allowed)}")
    model = FAMILIES[family](str(base), revision, key)
    steps = (said.steps or 4) if steps is None else steps
    if not 1 <= steps <= STEPS_MOST:
        raise ConfigError(f"{mark}steps: {steps}, allowed: 1 to {STEPS_MOST}")
    return Drawing(model, files, modules, transformer, steps, dtype, device, partial)
