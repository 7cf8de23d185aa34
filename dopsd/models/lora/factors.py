"""Of which factors an adapter on a linear layer is made, LoRA's, LoKr's or LoHa's; their sizes.

LoKr (a Kronecker product) and LoHa (a Hadamard product) are named as PEFT and LyCORIS name them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from dopsd.config import LoraSection
from dopsd.errors import ModelError

Kind = Literal["lora", "lokr", "loha"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TITLES = {"lora": "LoRA", "lokr": "LoKr", "loha": "LoHa"}
MAGNITUDE = "lora_magnitude_vector"
"""Name of DoRA's magnitudes: that of PEFT's own files, which diffusers reads too."""
_MARKS = {"lora": ".lora_", "lokr": ".lokr_", "loha": ".hada_"}
_LAST = (".lora_B.weight", ".lokr_w2", ".lokr_w2_b", ".hada_w2_b")


def is_last(name: str) -> bool:
    """Whether a tensor is the factor that begins at zero, in which an exported file has its
    strength."""
    return name.endswith(_LAST)


def is_adapters(name: str) -> bool:
    """Whether a tensor of this name is an adapter's: what is trained beside it is not."""
    return any(mark in name for mark in _MARKS.values())


def kind_of(names: Iterable[str], where: str) -> Kind:
    """Of a file's tensors; a LoRA unless they say otherwise. Raises ModelError, which begins with
    ``where``, for several kinds in one file."""
    names = list(names)
    found = [kind for kind in KINDS if any(_MARKS[kind] in f".{name}" for name in names)]
    if len(found) > 1:
        both = " and ".join(TITLES[kind] for kind in found)
        raise ModelError(f"{where}: {both} in one file, allowed: one kind of adapter")
    return found[0] if found else "lora"


@dataclass(frozen=True)
class Factors:
    """``factor``: into how many parts LoKr cuts both sides of a layer, -1 for near the square root.
    ``decompose_both``: LoKr's small factor may be of low rank too."""

    rank: int
    kind: Kind = "lora"
    factor: int = -1
    decompose_both: bool = False
    dora: bool = False

    @classmethod
    def of(cls, lora: LoraSection) -> Factors:
        """Those that a config asks for."""
        return cls(lora.rank, lora.kind, lora.factor, lora.decompose_both, lora.dora)

    def shapes(self, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        """{name of a factor: shape} of the adapter on a layer [outputs, inputs]."""
        rank = self.rank
        if self.kind == "loha":
            sides = {"a": (outputs, rank), "b": (rank, inputs)}
            return {f"hada_w{n}_{side}": shape for n in (1, 2) for side, shape in sides.items()}
        if self.kind == "lokr":
            return self._kronecker(outputs, inputs)
        shapes: dict[str, tuple[int, ...]] = {
            "lora_A.weight": (rank, inputs),
            "lora_B.weight": (outputs, rank),
        }
        return shapes | ({MAGNITUDE: (outputs,)} if self.dora else {})

    def numel(self, outputs: int, inputs: int) -> int:
        """How many weights the adapter on a layer [outputs, inputs] has."""
        return sum(map(math.prod, self.shapes(outputs, inputs).values()))

    def _kronecker(self, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        """PEFT's rule: a factor is of low rank where that is less than half of its larger side."""
        (left_out, right_out), (left_in, right_in) = (
            kronecker_sides(size, self.factor) for size in (outputs, inputs)
        )
        small = self.decompose_both and self.rank < max(left_out, left_in) / 2
        large = self.rank < max(right_out, right_in) / 2
        return {
            **self._whole_or_low("lokr_w1", left_out, left_in, small),
            **self._whole_or_low("lokr_w2", right_out, right_in, large),
        }

    def _whole_or_low(
        self, name: str, rows: int, columns: int, low: bool
    ) -> dict[str, tuple[int, ...]]:
        if not low:
            return {name: (rows, columns)}
        return {f"{name}_a": (rows, self.rank), f"{name}_b": (self.rank, columns)}


def kronecker_sides(size: int, factor: int) -> tuple[int, int]:
    """``size`` as a product of two, as PEFT and LyCORIS cut it: ``factor`` first where it divides,
    else the largest divisor that is neither above it (-1: no bound) nor above the square root."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = math.isqrt(size) if factor < 0 else min(math.isqrt(size), factor)
    left = next(n for n in range(most, 0, -1) if size % n == 0)
    return left, size // left
