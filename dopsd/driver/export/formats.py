"""`dopsd export`: a trained LoRA in another program's spelling."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from dopsd import shown
from dopsd.checkpoint.folder import complete_steps, folder_of, read_checkpoint
from dopsd.checkpoint.learner_state import STUDENT_FILE
from dopsd.config import LoraSection, RunConfig
from dopsd.errors import ConfigError, ModelError
from dopsd.evaluation.evaluated_models import tell_if_unfinished
from dopsd.export import ADAPTER, described, folded, same_bytes
from dopsd.files import storage
from dopsd.models import FAMILIES
from dopsd.models.finite import first_nonfinite
from dopsd.models.hub import is_hub_id
from dopsd.models.lora.factors import MAGNITUDE, TITLES, Kind, kind_of
from dopsd.models.lora.files import file_metadata, read_lora_file
from dopsd.models.lora.fit import module_of
from dopsd.models.lora.formats import LoraFormat, spelled
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.ownership.scratch import temporary_folder
from dopsd.readers import Object, read_json
from dopsd.records import unpack
from dopsd.run_folder.files import LORA_FILE, OLD_TEACHER, PREVIEW, TEACHER_FILE, RunFolder
from dopsd.run_folder.files import weights_file as kept_file

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_STEP = re.compile(r"step-(\d+)")
_ADAPTER, _ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class TrainedLora:
    """A LoRA of a run by diffusers' names of its modules, its strength in B."""

    state: dict[str, Tensor]
    metadata: dict[str, str]
    family: str

    @property
    def kind(self) -> Kind:
        return kind_of(self.state, "RUN")

    @property
    def rank(self) -> int:
        """Of a plain LoRA."""
        return next(int(t.shape[0]) for n, t in self.state.items() if ".lora_A." in n)


def export_lora(source: str, format: LoraFormat, dtype: str, which: str, out: str) -> list[str]:
    """Write ``which`` (``student``, ``teacher`` or ``step-N``) of a run folder, or a LoRA file, in
    a format and dtype; returns what was written.

    ``out``: a file, of `peft` a folder. Raises ConfigError for what is there already or cannot be
    exported, ModelError for what the format or the dtype cannot hold.
    """
    paths = _free(format, out)
    lora = trained_lora(source, which)
    state = spelled(lora.state, format, FAMILIES[lora.family])
    files = [safetensors_payload(state, DTYPES[dtype], dtype, lora.metadata)]
    if format == "peft":
        files.append(_peft_config(lora))
    for path, payload in zip(paths, files, strict=True):
        storage.write_bytes(path, payload)
    return paths


def trained_lora(source: str, which: str = STUDENT) -> TrainedLora:
    """Raises ConfigError for what ``source`` has not."""
    if source.endswith(_SUFFIX):
        if which != STUDENT:
            raise ConfigError(f"--which: {which} of a file, allowed: a run folder's")
        return _from_file(source)
    run = RunFolder(source.rstrip("/"))
    if not run.exists:
        raise ConfigError(
            f"{source}: holds no run; allowed: a run folder, or a LoRA (.safetensors)"
        )
    config = run.config()
    if config.adapters != "lora":
        raise ConfigError(
            f"{source}: of adapters: {config.adapters}, which is more than a LoRA; allowed: a run "
            "of adapters: lora"
        )
    if match := _STEP.fullmatch(which):
        return _of_step(run, config, int(match[1]))
    names = {STUDENT: (LORA_FILE,), TEACHER: (TEACHER_FILE, *OLD_TEACHER[:1])}.get(which)
    if names is None:
        raise ConfigError(
            f"--which: {shown.value(which)}, allowed: student, teacher, {_steps_said(run)}"
        )
    for name in names:
        if run.has(name):
            tell_if_unfinished(run.file(name))
            return _from_file(run.file(name))
    why = "this run has none" if run.is_finished else "the run is not finished"
    raise ConfigError(f"{source}: no {names[0]}, {why}; allowed: --which {_steps_said(run)}")


def _from_file(path: str) -> TrainedLora:
    """Raises ModelError for a file that does not say of which family it is."""
    if not storage.exists(path):
        raise ModelError(f"{path}: no such LoRA file")
    family = file_metadata(storage.read_bytes(path)).get("dopsd.family", "")
    if family not in FAMILIES:
        raise ModelError(f"{path}: names no family of dopsd; allowed: a LoRA that dopsd wrote")
    file = read_lora_file(path, "RUN", FAMILIES[family])
    kind = kind_of(file.tensors, path)
    if kind != "lora" and ADAPTER not in file.metadata:
        raise ModelError(f"{path}: a {TITLES[kind]} that dopsd did not write, allowed: one of it")
    return TrainedLora(file.tensors, file.metadata, family)


def _of_step(run: RunFolder, config: RunConfig, step: int) -> TrainedLora:
    """From the checkpoint, which is fp32, or what was kept for the run page."""
    if step in complete_steps(run.checkpoints):
        checkpoint = read_checkpoint(folder_of(run.checkpoints, step))
        state, _ = unpack(checkpoint.files[STUDENT_FILE])
        lora = config.lora
        metadata = described(config, checkpoint.manifest.data)
        metadata |= {"dopsd.adapter": STUDENT, "dopsd.step": str(step)}
        whole = folded(state, lora.rank, lora.alpha, rank_stabilized=lora.rank_stabilized)
        return TrainedLora(whole, metadata, config.model.family)
    path = run.file(kept_file(PREVIEW, step, STUDENT))
    if storage.exists(path):
        lora_of = _from_file(path)
        return TrainedLora(
            lora_of.state, lora_of.metadata | {"dopsd.step": str(step)}, lora_of.family
        )
    raise ConfigError(f"--which: step-{step} is not kept, allowed: {_steps_said(run)}")


def _steps_said(run: RunFolder) -> str:
    """Steps of which there are weights, in words."""
    pattern = re.compile(re.escape(kept_file(PREVIEW, 0, STUDENT)).replace("000000", r"(\d+)"))
    kept = {int(m[1]) for name, _ in storage.list_files(run.path) if (m := pattern.fullmatch(name))}
    steps = sorted(kept | {*complete_steps(run.checkpoints)})
    return ", ".join(f"step-{step}" for step in steps) or "none (no step is kept)"


def _free(format: str, out: str) -> list[str]:
    """Where to write. Raises ConfigError for what is there already, or no name of a file."""
    if format != "peft" and not out.endswith(_SUFFIX):
        raise ConfigError(f"--out: {out}, allowed: a file that ends in {_SUFFIX}")
    if format == "peft" and out.endswith(_SUFFIX):
        raise ConfigError(
            f"--out: {out} with --format peft, allowed: a folder ({_ADAPTER}, {_ADAPTER_CONFIG})"
        )
    paths = (
        [out] if format != "peft" else [storage.join(out, n) for n in (_ADAPTER, _ADAPTER_CONFIG)]
    )
    if format == "peft":
        storage.check_writable("--out", out)
    for path in paths:
        storage.check_file("--out", path)
        if storage.taken(path):
            raise ConfigError(
                f"--out: {path} is there already, allowed: another, or moving it away"
            )
    return paths


def safetensors_payload(
    state: dict[str, Tensor], dtype: torch.dtype, named: str, metadata: dict[str, str]
) -> bytes:
    """A file of ``state``. Raises ModelError for what ``dtype``, to the user ``named``, cannot
    hold."""
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in state.items()}
    if name := first_nonfinite(tensors):
        raise ModelError(f"--dtype: {named} cannot hold {name}; allowed: bf16, fp32")
    return same_bytes(save(tensors, metadata={"format": "pt", **metadata}))


def _peft_config(lora: TrainedLora) -> bytes:
    """PEFT's own, with the strength that lies in B left at 1."""
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    base = lora.metadata.get("dopsd.base", "")
    common: dict[str, Any] = {
        "target_modules": sorted({module_of(name).rstrip(".") for name in lora.state}),
        "base_model_name_or_path": base if is_hub_id(base) else None,
        "inference_mode": True,
    }
    config: LoraConfig | LoKrConfig | LoHaConfig
    if lora.kind == "lora":
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.rank,
            use_dora=any(name.endswith(MAGNITUDE) for name in lora.state),
            **common,
        )
    else:
        cut = LoraSection.model_validate(json.loads(lora.metadata[ADAPTER]))
        common |= {"r": cut.rank, "alpha": cut.rank}
        if cut.kind == "loha":
            config = LoHaConfig(**common)
        else:
            config = LoKrConfig(
                decompose_factor=cut.factor, decompose_both=cut.decompose_both, **common
            )
    with temporary_folder("peft") as folder:
        config.save_pretrained(folder)
        values: dict[str, Any] = read_json(storage.join(folder, _ADAPTER_CONFIG), Object)
    values["target_modules"] = sorted(values["target_modules"])  # which PEFT holds as a set
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
