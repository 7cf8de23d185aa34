"""What pictures are drawn with: as asked for, and else as the LoRAs' own files say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dopsd.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

    from dopsd.evaluation.drawn_with import WeightedLora
    from dopsd.models.base import Family


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
        use_device(self.device)
        return generate(
            self.family,
            prompts,
            self.loras,
            self.steps,
            size[0] or side,
            size[1] or side,
            seed,
            self.dtype,
            self.device,
            [read_reference(path) for path in references],
            self.modules,
            self.transformer,
            self.partial,
        )


def drawing(
    loras: Sequence[str] = (),
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
    from dopsd.evaluation.evaluated_models import as_trained, evaluated_models
    from dopsd.library.lora import concept_lora
    from dopsd.models import FAMILIES
    from dopsd.models.base import DTYPES

    files = []
    for given in map(WeightedLora.parse, loras):
        path = concept_lora(given.path)
        if path.endswith(".safetensors"):
            files.append(given.at(path))
            continue
        (run,) = map(as_trained, evaluated_models([path]))
        files += [given.at(own) for own in run.loras]
        if len(loras) > 1 and (run.modules or run.transformer):
            raise ConfigError(f"{mark}lora: {path} is more than a LoRA, allowed: it alone")
        modules, transformer = modules or run.modules, transformer or run.transformer
    said = Said() if base and family else said_by(files)
    key = f"{mark}base" if base or not said.base else f"{mark}lora {files[0].path}: its base"
    family = family or said.family or "z_image"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = dtype or ("bfloat16" if device == "cuda" else "float32")
    for option, value, allowed in (("family", family, FAMILIES), ("dtype", dtype, DTYPES)):
        if value not in allowed:
            raise ConfigError(f"{mark}{option}: {value!r}, allowed: {', '.join(allowed)}")
    model = FAMILIES[family](base or said.base or "shapes", revision, key)
    steps = steps or said.steps or 4
    return Drawing(model, files, modules, transformer, steps, dtype, device, partial)
