"""Which keys of a run config go together: a table, of which the first broken rule is told."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dopsd import shown
from dopsd.config.base import Section
from dopsd.config.context import CONTEXT_NEEDS, REFERENCE_FAMILIES, VLM_FAMILIES
from dopsd.config.data import PriorSection
from dopsd.config.model import LoraSection
from dopsd.config.roles import LearnerSection
from dopsd.credentials import holds_credentials

if TYPE_CHECKING:
    from dopsd.config.run import RunConfig

_CONTROLS = {
    False: re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]"),
    True: re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]"),
}
"""What no text of a config may hold; a sentence may go over several lines."""
_NAME, _SENTENCE = 4096, 20_000
"""Characters of a name, a path or an id, and of an instruction."""


@dataclass(frozen=True)
class Rule:
    broken: Callable[[RunConfig], bool]
    message: str
    """Names the key, what was given and what is allowed; ``{c.method.steps}`` reads the config."""


def _bad_sigmas(c: RunConfig) -> bool:
    sigmas = c.method.sigmas or [1.0]
    descending = all(a > b for a, b in zip(sigmas, sigmas[1:]))
    return not (descending and sigmas[-1] > 0 and sigmas[0] == 1)


def _full(c: RunConfig) -> bool:
    return c.adapters == "full"


def _prodigy(c: RunConfig) -> bool:
    return c.learner.optimizer == "prodigy"


def _fused(c: RunConfig) -> bool:
    return c.source == "fused"


def _one_model(c: RunConfig) -> bool:
    """Whether student and teacher are one set of weights, so that learners need no second model."""
    return c.adapters == "lora" or (
        _full(c) and (c.method.objective == "sft" or c.method.teacher == "live")
    )


_PRIOR = [
    (key, field.default) for key, field in PriorSection.model_fields.items() if key != "prompts"
]
"""(key, default) of what says something about the base's own samples."""
_PRODIGY = [(key, LearnerSection.model_fields[key].default) for key in ("d0", "d_coef")]
"""(key, default) of what is said to Prodigy alone."""
_LEAST_MULTIPLIER = 0.1
"""Below it stands a learning rate of AdamW's."""
_OFF_POLICY = "with method.objective: {c.method.objective}, allowed:"
_FACTOR = LoraSection.model_fields["factor"].default
_CONTEXT = "with context.name: {c.context.name}, allowed:"
_WITHOUT_TOKENS = " or ".join(n for n, needs in CONTEXT_NEEDS.items() if not needs.reference_tokens)
PATHS = ("run.folder", "data.source", "data.shards", "data.prior.prompts", "lora.init")
"""Keys that name a folder or file of the user, here or on S3."""
RULES = (
    Rule(
        lambda c: c.learner.global_batch % c.learner.micro_batch != 0,
        "learner.global_batch: {c.learner.global_batch} is not a multiple of learner.micro_batch "
        "({c.learner.micro_batch})",
    ),
    Rule(
        lambda c: c.learner.workers > c.learner.micro_batches,
        "learner.workers: {c.learner.workers} learners, but a step has only "
        "{c.learner.micro_batches} micro-batches (learner.global_batch / learner.micro_batch); "
        "allowed: at most that many",
    ),
    Rule(
        lambda c: c.method.sigmas is not None and len(c.method.sigmas) != c.method.steps,
        "method.sigmas: {c.method.sigmas}, allowed: as many as method.steps ({c.method.steps})",
    ),
    Rule(
        _bad_sigmas,
        "method.sigmas: {c.method.sigmas}, allowed: strictly descending from 1 (a rollout starts "
        "at pure noise), without the final 0",
    ),
    Rule(
        lambda c: _fused(c) and c.max_policy_lag > 0,
        "max_policy_lag: {c.max_policy_lag} with source: fused, allowed: 0 (the learner rolls out "
        "under its own weights)",
    ),
    Rule(
        lambda c: _fused(c) and c.inference.shared,
        "inference.shared: true with source: fused, allowed: false (there are no inference "
        "workers)",
    ),
    Rule(
        lambda c: c.method.objective == "sft" and not _fused(c),
        "source: disaggregated with method.objective: sft, allowed: fused (nobody rolls out or "
        "scores, so there is nothing for inference workers to do)",
    ),
    Rule(
        lambda c: c.method.objective == "sft" and c.method.sigmas is not None,
        "method.sigmas: given with method.objective: sft, allowed: none (its noise levels are "
        "drawn from the whole schedule)",
    ),
    Rule(
        lambda c: c.method.objective in ("sft", "sft_on_teacher") and c.method.weighting != "x0",
        "method.weighting: {c.method.weighting} with method.objective: {c.method.objective}, "
        "allowed: the default (flow matching weighs its levels equally)",
    ),
    Rule(
        lambda c: c.method.objective != "dopsd" and c.inference.shared,
        f"inference.shared: true {_OFF_POLICY} false (the student does not roll out: there is one "
        "pool anyway, `teacher`)",
    ),
    Rule(
        lambda c: c.method.objective != "dopsd" and c.debug.dump_trajectories > 0,
        f"debug.dump_trajectories: {{c.debug.dump_trajectories}} {_OFF_POLICY} 0 (no student "
        "trajectory)",
    ),
    Rule(
        lambda c: c.learner.workers > 1 and c.learner.gpus is not None and 0 < c.learner.gpus < 1,
        "learner.gpus: {c.learner.gpus} with {c.learner.workers} learners, allowed: whole GPUs "
        "(NCCL takes no two ranks on one GPU)",
    ),
    Rule(
        lambda c: not c.learner.cpus and (c.device == "cpu" or c.learner.gpus == 0),
        "learner.cpus: 0 without a GPU, allowed: more than 0 (Ray Train places learners by what "
        "they take)",
    ),
    Rule(
        lambda c: _prodigy(c) and c.learner.lr < _LEAST_MULTIPLIER,
        "learner.lr: {c.learner.lr:g} with learner.optimizer: prodigy, allowed: "
        f"{_LEAST_MULTIPLIER:g} or more, as a rule 1 (it multiplies the rate that Prodigy finds)",
    ),
    *(
        Rule(
            lambda c, key=key, usual=usual: (  # type: ignore[misc]
                not _prodigy(c) and getattr(c.learner, key) != usual
            ),
            f"learner.{key}: {{c.learner.{key}:g}} with learner.optimizer: "
            "{c.learner.optimizer}, allowed: with prodigy",
        )
        for key, usual in _PRODIGY
    ),
    Rule(
        lambda c: not _prodigy(c) and c.learner.lr * c.learner.weight_decay >= 1,
        "learner.weight_decay: {c.learner.weight_decay:g} with learner.lr: {c.learner.lr:g}, "
        "allowed: a product below 1 (each step takes that part of the weights away)",
    ),
    Rule(
        lambda c: c.learner.warmup_steps > c.learner.steps,
        "learner.warmup_steps: {c.learner.warmup_steps}, allowed: at most learner.steps "
        "({c.learner.steps})",
    ),
    Rule(
        lambda c: c.adapters != "lora" and bool(c.model.merge),
        "model.merge: given with adapters: {c.adapters}, allowed: none (what is trained could not "
        "be told from what was merged, and is drawn without it)",
    ),
    Rule(
        lambda c: c.adapters != "lora" and c.lora.init is not None,
        "lora.init: given with adapters: {c.adapters}, allowed: adapters: lora (a LoRA is no start "
        "of whole weights)",
    ),
    Rule(
        lambda c: bool(c.data.preservation.words) and c.adapters != "lora",
        "data.preservation.class_word: given with adapters: {c.adapters}, allowed: adapters: lora "
        "(what is preserved is what the base predicts without its adapter)",
    ),
    Rule(
        lambda c: bool(c.data.preservation.words) and c.method.objective != "dopsd",
        f"data.preservation.class_word: given {_OFF_POLICY} none (only the states of a student "
        "that rolls out are held to the base)",
    ),
    Rule(
        lambda c: any(c.data.token in word for word in c.data.preservation.words),
        "data.preservation.class_word: {c.data.preservation.class_word} holds data.token "
        "({c.data.token}), allowed: the word that stands for it (the two captions would be one)",
    ),
    Rule(
        lambda c: c.model.draw_merged and not c.model.merge,
        "model.draw_merged: true without model.merge, allowed: false (there is nothing to draw "
        "with)",
    ),
    Rule(
        lambda c: c.adapters != "lora" and c.inference.shared,
        "inference.shared: true with adapters: {c.adapters}, allowed: false (student and teacher "
        "differ in the model's own weights, so each needs a model)",
    ),
    Rule(
        lambda c: _fused(c) and _full(c) and not _one_model(c),
        "source: fused with adapters: full, allowed: disaggregated, or method.teacher: live, or "
        "method.objective: sft (the teacher would need a second model in the learners)",
    ),
    Rule(
        lambda c: _fused(c) and not _one_model(c),
        "source: fused with adapters: {c.adapters}, allowed: disaggregated (the teacher would need "
        "a second model in the learners)",
    ),
    Rule(
        lambda c: not _full(c) and c.method.teacher_sync_every != 1,
        "method.teacher_sync_every: {c.method.teacher_sync_every} with adapters: {c.adapters}, "
        "allowed: 1 (a small teacher goes out with every version; adapters: full takes more)",
    ),
    Rule(
        lambda c: _full(c) and c.lora.dora,
        "lora.dora: true with adapters: full, allowed: false (there is no LoRA)",
    ),
    Rule(
        lambda c: _full(c) and c.lora.rank_stabilized,
        "lora.rank_stabilized: true with adapters: full, allowed: false (there is no LoRA)",
    ),
    Rule(
        lambda c: _full(c) and c.lora.kind != "lora",
        "lora.kind: {c.lora.kind} with adapters: full, allowed: lora (there is no adapter)",
    ),
    *(
        Rule(
            lambda c, key=key: c.lora.kind != "lora" and getattr(c.lora, key),  # type: ignore[misc]
            f"lora.{key}: true with lora.kind: {{c.lora.kind}}, allowed: false (it is of plain "
            "LoRA)",
        )
        for key in ("dora", "rank_stabilized")
    ),
    Rule(
        lambda c: c.lora.factor == 0,
        "lora.factor: 0, allowed: 1 or more, or -1 (near the square root)",
    ),
    Rule(
        lambda c: c.lora.kind != "lokr" and (c.lora.factor != _FACTOR or c.lora.decompose_both),
        "lora.factor or lora.decompose_both: given with lora.kind: {c.lora.kind}, allowed: "
        "lora.kind: lokr",
    ),
    Rule(
        lambda c: c.lora.kind != "lora" and c.model.quantize == "nf4",
        "model.quantize: nf4 with lora.kind: {c.lora.kind}, allowed: none, int8, fp8 (PEFT's layer "
        "asks for the shape of the weights, and nf4 has packed them)",
    ),
    Rule(
        lambda c: c.model.quantize != "none" and c.adapters != "lora",
        "model.quantize: {c.model.quantize} with adapters: {c.adapters}, allowed: none (what "
        "trains keeps its precision)",
    ),
    Rule(
        lambda c: c.model.quantize != "none" and bool(c.model.merge),
        "model.merge: {c.model.merge} with model.quantize: {c.model.quantize}, allowed: none (a "
        "LoRA is added to whole weights)",
    ),
    Rule(
        lambda c: c.model.quantize != "none" and c.lora.dora,
        "lora.dora: true with model.quantize: {c.model.quantize}, allowed: false (DoRA needs the "
        "norms of the base's own weights)",
    ),
    Rule(
        lambda c: _full(c) and c.learner.optimizer != "adamw",
        "learner.optimizer: {c.learner.optimizer} with adapters: full, allowed: adamw (the "
        "teacher's average lies beside its moments)",
    ),
    Rule(
        lambda c: _full(c) and c.debug.dump_trajectories > 0,
        "debug.dump_trajectories: {c.debug.dump_trajectories} with adapters: full, allowed: 0 "
        "(each dump holds the weights that made it: two whole models)",
    ),
    Rule(
        lambda c: _full(c) and _fused(c) and c.method.teacher_sync_every != 1,
        "method.teacher_sync_every: {c.method.teacher_sync_every} with source: fused, allowed: 1 "
        "(nothing is published)",
    ),
    Rule(
        lambda c: c.context.needs.reference_tokens and c.model.family not in REFERENCE_FAMILIES,
        "context.name: {c.context.name} with model.family: {c.model.family}, allowed: "
        f"{_WITHOUT_TOKENS} (its transformer takes no reference tokens)",
    ),
    Rule(
        lambda c: c.model.vlm is not None and not c.context.needs.vlm,
        f"model.vlm: given {_CONTEXT} none (nothing is shown to a VLM)",
    ),
    Rule(
        lambda c: c.model.vlm is not None and c.model.family in VLM_FAMILIES,
        "model.vlm: given with model.family: {c.model.family}, allowed: none (its text encoder is "
        "a VLM and sees the target)",
    ),
    Rule(
        lambda c: c.context.needs.prompt_pairs and bool(c.data.caption_keys),
        f"data.caption_keys: given {_CONTEXT} none (context.prompt_pairs names the captions)",
    ),
    Rule(
        lambda c: c.context.needs.prompt_pairs and c.data.caption_dropout > 0,
        f"data.caption_dropout: {{c.data.caption_dropout:g}} {_CONTEXT} 0 (both roles would read "
        "the same empty prompt)",
    ),
    Rule(
        lambda c: (
            bool(c.data.prior.prompts)
            and (c.context.needs.references or c.context.needs.prompt_pairs)
        ),
        f"data.prior.prompts: given {_CONTEXT} none (the base's own samples have one caption and "
        "no references)",
    ),
    *(
        Rule(
            lambda c, key=key, usual=usual: (  # type: ignore[misc]
                not c.data.prior.prompts and getattr(c.data.prior, key) != usual
            ),
            f"data.prior.{key}: {{c.data.prior.{key}}} without data.prior.prompts, allowed: with "
            "the prompts that the base draws",
        )
        for key, usual in _PRIOR
    ),
    Rule(
        lambda c: bool(c.preview.prompts) and c.context.needs.references,
        f"preview.prompts: given {_CONTEXT} none (the student draws beside reference pictures, and "
        "a prompt alone has none)",
    ),
    Rule(
        lambda c: not c.data.source and not c.data.shards,
        "data.source: missing, allowed: a folder, .jsonl or .parquet file, or shapes:CONCEPT (or "
        "prepared shards under data.shards)",
    ),
)


def check_rules(config: RunConfig) -> None:
    """Raises ValueError with one line for the first combination that cannot be, and for a text that
    may stand in no config."""
    texts = list(_texts(config))
    # One look over all of them: of most configs nothing is to be said.
    if any("://" in text for _, text in texts) or holds_credentials("\n".join(t for _, t in texts)):
        for key, text in texts:
            _check_credentials(shown.line(key, shown.VALUE), text)
    for key, text in texts:
        _check_text(key, text)
        if key in PATHS and (problem := _unusable(text)):
            raise ValueError(f"{key}: {problem}")
    for rule in RULES:
        if rule.broken(config):
            raise ValueError(rule.message.format(c=config))


def _unusable(path: str) -> str | None:
    """What is wrong with a path or URL in the config, if anything."""
    scheme, separated, rest = path.partition("://")
    if not separated:
        return None
    if scheme != "s3":
        return (
            f"{shown.value(f'{scheme}://...')}, allowed: a path on this machine, or s3://BUCKET/..."
        )
    return None if rest.strip("/") else "s3:// without a bucket, allowed: s3://BUCKET/..."


def _check_credentials(key: str, text: str) -> None:
    if holds_credentials(text):  # the config is written into the run folder and shown
        where = "a URL" if "://" in text else "a text"
        raise ValueError(
            f"{key}: credentials in {where}, allowed: {where} without them; they come from the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )


def _check_text(key: str, text: str) -> None:
    sentence = key == "context.instruction"
    if control := _CONTROLS[sentence].search(text):
        raise ValueError(
            f"{shown.line(key, shown.VALUE)}: {shown.value(text)} holds "
            f"U+{ord(control[0]):04X}, which is no text; allowed: text without control characters"
        )
    most = _SENTENCE if sentence else _NAME
    if len(text) > most:
        raise ValueError(
            f"{shown.line(key, shown.VALUE)}: {shown.value(text)}, {len(text)} characters; "
            f"allowed: at most {most}"
        )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every text in a config, the names in mappings included."""
    if isinstance(value, Section):
        for name, inner in value:
            yield from _texts(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield key, name
            yield from _texts(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, key)
    elif isinstance(value, str):
        yield key, value
