"""What a user names by a LoRA file or a run's folder: everything that was trained there."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace

from dopsd.checkpoint.folder import complete_steps
from dopsd.errors import ConfigError
from dopsd.evaluation.spec import EvaluatedModel
from dopsd.files import storage
from dopsd.models.lora.files import file_metadata
from dopsd.models.lora.layers import STUDENT
from dopsd.models.transformer_folder import is_transformer
from dopsd.run_folder.files import DIFFUSERS_FILE, LORA_FILE, MODULES, TRANSFORMERS, RunFolder
from dopsd.terminal import complain

_STEPS = re.compile(r"\bsteps=(\d+)\b")
_MODULES = dict.fromkeys((LORA_FILE, DIFFUSERS_FILE), MODULES[STUDENT])
"""What a run leaves beside a LoRA when it trained more, the teacher's alike."""


def evaluated_models(loras: Sequence[str], stack: bool = False) -> tuple[EvaluatedModel, ...]:
    """One for each LoRA file or run folder, given as ``[NAME=]PATH``; with ``stack`` one more, of
    all of them loaded together. Raises ConfigError when those are fewer than two."""
    models = []
    for lora in loras:
        name, equals, path = lora.partition("=")
        if not equals or "/" in name or ":" in name:  # the "=", if any, is the path's own
            name, path = "", lora
        path = path.rstrip("/")
        if not path.endswith(".safetensors"):
            path = storage.join(path, LORA_FILE)
        folder, file = posixpath.basename(posixpath.dirname(path)), posixpath.basename(path)
        said = folder if folder and file in _MODULES else posixpath.splitext(file)[0]
        models.append(EvaluatedModel(name or said, (path,)))
    if stack:
        if len(models) < 2:
            raise ConfigError(f"--stack: {len(models)} LoRAs, allowed: two or more")
        names, files = "+".join(m.name for m in models), [m.loras[0] for m in models]
        models.append(EvaluatedModel(names, tuple(files)))
    return tuple(models)


def as_trained(model: EvaluatedModel) -> EvaluatedModel:
    """The model with what its run trained beside the LoRA, or in place of one."""
    alone = len(model.loras) == 1
    for path in model.loras:
        folder, file = posixpath.split(path)
        if file == LORA_FILE and not storage.exists(path):
            for whole in (folder, storage.join(folder, TRANSFORMERS[STUDENT])):
                if is_transformer(whole):
                    if alone:
                        return replace(model, loras=(), transformer=whole)
                    raise _not_stackable(whole)
        tell_if_unfinished(path)
        beside = storage.join(folder, _MODULES.get(file, file))
        if beside != path and storage.exists(beside):
            if alone:
                return replace(model, modules=beside)
            raise _not_stackable(beside)
    return model


def tell_if_unfinished(path: str) -> None:
    """Say of which step an exported LoRA is whose run goes on to another one, or was killed on the
    way. Raises ConfigError for a run that has exported none yet."""
    folder, file = posixpath.split(path)
    run = RunFolder(folder)
    if file not in _MODULES or not run.exists or run.is_finished:
        return
    config = run.config()
    if not storage.exists(path):
        words, steps = f"--lora: {folder}: the run is not finished", complete_steps(run.checkpoints)
        if steps and config.adapters == "lora":
            own = shlex.join(["dopsd", "export", folder, "--which", f"step-{steps[-1]}"])
            words += f", step {steps[-1]} is saved: {own} --out FILE.safetensors gives its LoRA"
        raise ConfigError(f"{words}; allowed: a run that has exported what it trained")
    trained = _STEPS.search(file_metadata(storage.read_bytes(path)).get("dopsd.recipe", ""))
    wanted = config.learner.steps
    if trained and int(trained[1]) < wanted:
        complain(
            f"{folder}: the run is not finished: its LoRA is that of step {trained[1]} of {wanted}"
        )


def _not_stackable(path: str) -> ConfigError:
    return ConfigError(
        f"--stack: {path} is more than a LoRA, allowed: LoRAs alone (weights of the model "
        "itself do not add up)"
    )
