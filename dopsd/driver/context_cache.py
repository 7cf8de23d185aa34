"""The context cache, contexts encoded once (`dopsd prepare --cache-contexts`): what it is made of,
and whether it fits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from dopsd.config import RunConfig
from dopsd.contexts import encoder_class
from dopsd.contexts.training import TrainingEncoderFactory
from dopsd.data.context_cache.files import (
    PREFIX,
    RECORD,
    RERUN_HINT,
    CacheRecord,
    ContextCache,
    Entries,
    check_files,
    differences,
    load_record,
)
from dopsd.data.context_cache.writer import write_context_cache
from dopsd.data.manifest import Manifest
from dopsd.data.run_data import claimed_shards, prepared, read_spec
from dopsd.data.schema import without_generation
from dopsd.driver.drawing.prior import drawing_role
from dopsd.driver.monitoring.progress import Report, Show
from dopsd.driver.setup.run_setup import Needed, RunSetup, check_run, no_roles, reserved
from dopsd.errors import DataError
from dopsd.files import storage
from dopsd.models import FAMILIES, resolve_vlm
from dopsd.models.fingerprint import fingerprint, model_identity
from dopsd.models.pretrained import resolve_base
from dopsd.ray_cluster.placement import Role, Roles


def made_of(config: RunConfig, manifest: Manifest) -> Entries:
    """Everything that the run's contexts depend on, as plain values.

    Weights and tokenizers by ``model_identity``; of the rest only what the context looks at, so
    that a key that it ignores makes no difference.
    """
    model, context, needs = config.model, config.context, config.context.needs
    family = FAMILIES[model.family](model.base, model.revision)
    kept_tokens, text = family.kept_tokens, family.text_format
    reads = read_spec(config)
    entries: Entries = {
        "context": context.name,
        "family": model.family,
        "dtype": model.dtype,
        "text_encoder": _identity(model.base, "text_encoder", model.revision),
        "tokenizer": _identity(model.base, family.tokenizer_folder, model.revision),
        "layers": ",".join(map(str, text.layers)),
        "thinking": text.thinking,
        "padded": text.padded,
        "text_tokens": kept_tokens(context.text_tokens),
        "teacher": config.method.objective != "sft",
        "latents": config.method.needs_targets,
        "empty_prompt": reads.caption_dropout > 0,
        "data": manifest.fingerprint,
        "layout": _layout(manifest),
    }
    if reads.class_words is not None:
        words = [reads.class_words.token, reads.class_words.words]
        entries["class_words"] = json.dumps(words, ensure_ascii=False)
    if config.encoder.quantize != "none":  # left out, so that older caches fit
        entries["quantize"] = config.encoder.quantize
    if text.template is not None:
        entries["template"] = text.template.text("{}", with_image=needs.vlm)
    if reads.prompt_pairs:
        entries["prompt_pairs"] = [list(pair) for pair in reads.prompt_pairs]
    else:
        entries["caption_keys"] = sorted(reads.caption_keys or manifest.caption_keys)
    if config.separate_vlm:
        vlm = resolve_vlm(model.base, model.vlm, model.revision)
        entries["vlm"] = model_identity(vlm, model.vlm_revision)
    if needs.vlm:
        entries |= {
            "image_text_tokens": kept_tokens(context.image_text_tokens),
            "image_min_pixels": context.image_min_pixels,
            "image_max_pixels": context.image_max_pixels,
        }
    if needs.reference_tokens:
        default = encoder_class(context.name).default_instruction
        entries["instruction"] = context.instruction or default
    if needs.references:
        entries["reference_max_pixels"] = reads.reference_pixels
        entries["reference_multiple"] = reads.reference_multiple
    if needs.reference_tokens or config.method.needs_targets:
        entries["vae"] = _identity(model.base, "vae", model.revision)
    return entries


def _identity(base: str, part: str, revision: str | None) -> str:
    base = resolve_base(base)
    folder = Path(base) / part
    return model_identity(str(folder)) if folder.is_dir() else model_identity(base, revision)


def _layout(manifest: Manifest) -> str:
    """Which rows lie where: equal data can be laid out otherwise."""
    groups = [
        (without_generation(group.file), group.row_group, group.rows)
        for group in manifest.row_groups
    ]
    return hashlib.sha256(json.dumps(groups).encode()).hexdigest()[:12]


def surely_needed(config: RunConfig) -> Needed:
    """The roles that the run needs before it is known whether the cached contexts fit: if there are
    any at this moment, it may need no encoder."""
    cached = config.data.context_cache != "off" and bool(_names(config.shards))

    def needed(_: RunConfig, roles: Roles) -> list[Role]:
        return (replace(roles, encoder=None) if cached else roles).all()

    return needed


def with_cached_contexts(setup: RunSetup) -> RunSetup:
    """The setup without an encoder where the context cache fits; raises as
    ``find_context_cache``."""
    cache = find_context_cache(setup.config, setup.manifest, setup.show)
    if cache is None:
        return setup
    return replace(setup, roles=replace(setup.roles, encoder=None), context_cache=cache)


def _names(shards: str) -> list[str]:
    return sorted(name for name in storage.names(shards) if name.startswith(PREFIX))


def find_context_cache(config: RunConfig, manifest: Manifest, show: Show) -> ContextCache | None:
    """The context cache that the run reads, or None where it encodes online; it says which where
    there was a choice.

    Raises DataError in mode `require` when none fit, naming what differs.
    """
    mode = config.data.context_cache
    if mode == "off":
        return None
    names = _names(config.shards)
    if not names:
        if mode == "require":
            raise DataError(
                f"data.context_cache: require, but {config.shards} holds no context cache; run "
                "`dopsd prepare CONFIG --cache-contexts`"
            )
        return None
    asked = made_of(config, manifest)
    problems = []
    for name in names:
        folder = storage.join(config.shards, name)
        try:
            record = _fitting(folder, asked, manifest)
        except DataError as error:
            problems.append(str(error))
            continue
        show("prepare", Report([f"Contexts: read from {folder}; no encoder is loaded."]))
        reads = asked["teacher"], asked["latents"]
        return ContextCache(folder, record.fingerprint, record.entries, *reads, record.digest)
    problem = min(problems, key=len)  # the shortest tells of the fewest differences
    more = f" (and {len(problems) - 1} others do not)" if len(problems) > 1 else ""
    if mode == "require":
        raise DataError(f"data.context_cache: require, but {problem}{more}")
    show("prepare", Report([f"Contexts: encoded while training, since {problem}{more}"]))
    return None


def _fitting(folder: str, asked: Entries, manifest: Manifest) -> CacheRecord:
    """The record of ``folder``. Raises DataError when it does not fit or is not whole."""
    record = load_record(folder)
    if differ := differences(record.entries, asked):
        raise DataError(
            f"{folder} (fingerprint {record.fingerprint}) does not fit the run "
            f"({fingerprint(asked)}): {'; '.join(differ)}"
        )
    if record.fingerprint != fingerprint(record.entries):
        raise DataError(
            f"{storage.join(folder, RECORD)}: fingerprint {record.fingerprint}, its entries give "
            f"{fingerprint(record.entries)}; take the folder away and {RERUN_HINT}"
        )
    check_files(folder, record, manifest)
    return record


def encode_contexts(config: RunConfig, show: Show, take_over: bool = False) -> list[str]:
    """`dopsd prepare --cache-contexts`: what is missing is prepared, drawn, encoded.

    Returns what was done, in lines. An unfinished cache is resumed; other caches stay. Raises as
    ``RunSetup.open``, ``with_prior`` and the encoders do, and LeaseHeld when another process writes
    into the shards, unless ``take_over``.
    """
    run, data = check_run(config, show), partial(prepared, take_over=take_over)
    with reserved(run.config, show) as place:
        # The prior is drawn before there are encoders: they need no room beside each other.
        first, later = encoders, no_roles
        if run.config.data.prior.prompts is not None:
            first, later = _drawing, encoders
        setup = RunSetup.open(run, show, place, first, data, later)
        return encode_setup(setup.with_prior(), show, take_over)


def encoders(config: RunConfig, roles: Roles) -> Sequence[Role]:
    """What encodes contexts."""
    return [roles.encoder] if roles.encoder else []


def _drawing(config: RunConfig, roles: Roles) -> Sequence[Role]:
    return [drawing_role(roles.learner)]


def encode_setup(setup: RunSetup, show: Show, take_over: bool = False) -> list[str]:
    """The same of data that is there."""
    assert setup.roles.encoder is not None
    setup.wait_for(setup.roles.encoder)
    with claimed_shards(setup.config, partial(show, "prepare"), take_over):
        return _encode(setup, setup.roles.encoder, show)


def _encode(setup: RunSetup, role: Role, show: Show) -> list[str]:
    config, manifest = setup.config, setup.manifest
    entries = made_of(config, manifest)
    folder = storage.join(config.shards, PREFIX + fingerprint(entries))
    if storage.exists(storage.join(folder, RECORD)):
        record = _fitting(folder, entries, manifest)
        done = "were encoded already"
    else:
        record = write_context_cache(
            config.shards,
            folder,
            manifest,
            read_spec(config),
            fingerprint(entries),
            entries,
            TrainingEncoderFactory(config, role.device),
            workers=role.workers,
            num_cpus=role.cpus,
            num_gpus=role.gpus,
            options=role.label_options,
            progress=lambda stage, count, total: show("prepare", f"{stage}: {count}/{total}"),
        )
        done = "are encoded"
    size = sum(record.files.values()) / 2**20
    return [
        f"contexts of {record.samples} samples {done}: {len(record.files)} files, {size:.1f} MB",
        f"Context cache: {folder}",
    ]
