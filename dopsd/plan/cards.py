"""GPUs that can be rented or bought, by name."""

from __future__ import annotations

from dataclasses import dataclass

from dopsd.errors import ConfigError

GIB = 2**30
USABLE = 0.97
"""Of a card's memory; the rest is taken by driver and error correction."""
RESERVED = 1.75 * GIB
"""CUDA context, cuBLAS and NCCL of each process: 1.5 to 2 GiB, an estimate."""
EFFICIENCY = 0.35
"""Share of a card's peak that a role reaches without torch.compile, an estimate: of a Z-Image
forward of 57.8 TFLOP an H100 takes 96 ms for products and 80 for elementwise traffic, a third of
its peak."""


@dataclass(frozen=True)
class Card:
    name: str
    gib: int
    tflops: float
    """Dense bf16 peak with fp32 sums, by the vendor's data sheet."""

    @property
    def usable(self) -> float:
        """Bytes."""
        return self.gib * GIB * USABLE


CARDS = {
    card.name: card
    for card in (
        Card("4060ti-16", 16, 44),
        Card("3090-24", 24, 71),
        Card("l4-24", 24, 121),
        Card("4090-24", 24, 165),
        Card("5090-32", 32, 209),
        Card("a100-40", 40, 312),
        Card("l40s-48", 48, 362),
        Card("a100-80", 80, 312),
        Card("h100-80", 80, 989),
        Card("h200-141", 141, 989),
    )
}
DEFAULT = "h100-80"


def card_named(name: str) -> Card:
    """Raises ConfigError for a card that is not listed."""
    if name not in CARDS:
        raise ConfigError(f"--card: {name!r}, allowed: {', '.join(CARDS)}")
    return CARDS[name]


def smallest(needed: float) -> int | None:
    """GiB of the smallest size of card that holds ``needed`` bytes; None: no card does."""
    sizes = sorted({card.gib for card in CARDS.values()})
    return next((size for size in sizes if needed <= size * GIB * USABLE), None)
