"""A plan as the comment at the head of a recipe (`dopsd plan CONFIG --comment` prints it,
tests/plan/test_recipes.py holds the recipes to it)."""

from __future__ import annotations

from dopsd.plan.cards import GIB, smallest
from dopsd.plan.plan import Plan


def comment(plan: Plan) -> str:
    """Which card each group of roles needs, what is downloaded, and how fast it is."""
    split = plan.shipped
    download = plan.base.download_gb
    size = "not known" if download is None else f"{download:.0f} GB a node"
    gated = "gated" if plan.base.gated else "not gated"
    lines = [f"Planned (dopsd plan), not measured. Download: {size}; {gated}."]
    lines += [f"  {name}: accept its licence, set HF_TOKEN" for name in plan.base.gated]
    for group in split.groups:
        card = smallest(group.memory)
        lines.append(
            f"  {group.name}: {group.gpus:g} GPUs, {group.memory / GIB:.1f} GiB "
            f"({'no card' if card is None else f'{card} GB card'}), busy {split.busy(group):.0%}"
        )
    lines.append(
        f"  on {plan.card.name} at {plan.efficiency:.0%} of its peak: {split.seconds:.2f} s a "
        f"step, {split.images_per_gpu_second:.3f} images/GPU/s"
    )
    return "\n".join(f"# {line}" for line in lines)
