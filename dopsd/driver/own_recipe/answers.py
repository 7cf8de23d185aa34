"""What `dopsd init` asks: base, card, data, concept and cluster, each as a flag or a person gives
it."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Literal, get_args

from dopsd import shown
from dopsd.credentials import holds_credentials
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.plan.cards import CARDS, Card, card_named

SHAPES = "shapes"
BASES = {
    "z_image_turbo": "z_image_turbo_lora_fused",
    "flux2_klein_4b": "flux2_klein_4b_vlm_lora",
    "flux2_klein_9b": "flux2_klein_9b_edit_lora",
    "krea_2_turbo": "krea2_turbo_vlm_lora",
    SHAPES: "shapes",
}
"""Bases by name, and the recipe whose settings are taken: the authors'. Qwen-Image is none of them:
its few steps are a file that a person has to fetch first."""
RUNS = "runs"
"""Folder of the runs of such recipes."""
NO_CARD = "none"
"""What the tiny world needs."""
GPUS_MOST = 256
Where = Literal["here", "ray", "kuberay"]


@dataclass(frozen=True)
class Cluster:
    """Where it trains, and on how many GPUs."""

    where: Where = "here"
    gpus: int = 1

    def __str__(self) -> str:
        return f"{self.where}:{self.gpus}"


@dataclass(frozen=True)
class Answers:
    """What a recipe is made of."""

    base: str
    """Of ``BASES``."""
    card: Card | None
    """None: no GPU."""
    source: str
    """Of the data."""
    concept: str
    cluster: Cluster
    concepts: tuple[str, ...] = ()
    """Of the source, those that are trained on; none: all."""


def base_named(name: str) -> str:
    """Raises ConfigError for a base that has no recipe here."""
    base = re.sub(r"[^a-z0-9]+", "_", name.rpartition("/")[2].lower()).strip("_")
    if base not in BASES:
        base = base.replace("flux_2_", "flux2_")  # as the hub spells it
    if base not in BASES:
        raise ConfigError(
            f"--base: {shown.value(name)}, allowed: {', '.join(BASES)} (of another one, or a "
            "folder, change model.base in the recipe)"
        )
    return base


def card_for(base: str, name: str) -> Card | None:
    """None for the tiny world, which needs none. Raises ConfigError for a card that is not listed,
    and for none where one is needed."""
    if name != NO_CARD:
        if name not in CARDS:
            also = f", {NO_CARD}" if base == SHAPES else ""
            raise ConfigError(
                f"--card: {shown.value(name)}, allowed: {', '.join(CARDS)}{also}; of another "
                "card that of its memory"
            )
        return None if base == SHAPES else card_named(name)
    if base != SHAPES:
        raise ConfigError(f"--card: {name} with --base {base}, allowed: {', '.join(CARDS)}")
    return None


def cluster_named(text: str) -> Cluster:
    """``WHERE`` or ``WHERE:GPUS``. Raises ConfigError for anything else."""
    where, colon, gpus = text.strip().partition(":")
    count = int(gpus) if re.fullmatch(r"[0-9]{1,4}", gpus) else 0
    if where not in get_args(Where) or (colon and not 1 <= count <= GPUS_MOST):
        raise ConfigError(
            f"--cluster: {shown.value(text)}, allowed: {', '.join(get_args(Where))}, with :N "
            f"for N GPUs (1 to {GPUS_MOST}), e.g. here:1"
        )
    return Cluster(where, count or 1)  # type: ignore[arg-type]


def concept_named(text: str) -> str:
    """Raises ConfigError for what is no name."""
    name = text.strip()
    if not name or shown.visible(name) != name or "\n" in name or len(name) > shown.VALUE:
        raise ConfigError(
            f"--concept: {shown.value(text)}, allowed: a name of at most {shown.VALUE} characters"
        )
    if holds_credentials(name):  # files and a run are named after it
        raise ConfigError("--concept: credentials in a name, allowed: a name without")
    return name


def free_run_name(name: str) -> str:
    """A name for the run of which `runs/NAME` is free: nothing that was trained there is asked to
    go. It begins with a letter, which Kubernetes asks for."""
    named = name if name[0].isalpha() else f"run-{name}"
    every = itertools.chain([named], (f"{named}-{number}" for number in itertools.count(2)))
    return next(each for each in every if not storage.taken(f"{RUNS}/{each}"))
