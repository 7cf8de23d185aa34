"""The commands that go on from a run, as a shell takes them."""

from __future__ import annotations

import shlex

from dopsd.config import RunConfig

_CONCEPTS = {
    "ring": "a red [V] on teal",
    "bars": "a red [V] square on teal",
    "sprites": "a red [V] [V] on teal",
}
"""A prompt for each concept of the shapes world."""


def next_command(run: RunConfig, *trained: str | None) -> str:
    """What draws with a run's weights; ``trained``: LoRA, modules and transformer, what there is
    of them."""
    words = ["dopsd", "generate"]
    prompt = _prompt(run)
    words += [] if prompt.startswith("-") else [prompt]
    if run.model.base != "shapes":
        words += ["--base", run.model.base, "--family", run.model.family]
        words += ["--dtype", run.model.dtype]
        words += ["--revision", run.model.revision] if run.model.revision else []
    steps = run.preview.steps or run.method.steps
    words += ["--steps", str(steps)]
    for option, path in zip(("--lora", "--modules", "--transformer"), trained):
        words += [] if path is None else [option, path]
    for entry in run.model.merge if run.model.draw_merged else ():
        words += ["--lora", entry]
    words += ["--", prompt] if prompt.startswith("-") else []
    return shlex.join(words)


def _prompt(run: RunConfig) -> str:
    if isinstance(run.preview.prompts, list) and run.preview.prompts:
        return run.preview.prompts[0]
    return _CONCEPTS.get(
        (run.data.source or "").removeprefix("shapes:").partition("#")[0], "your prompt"
    )
