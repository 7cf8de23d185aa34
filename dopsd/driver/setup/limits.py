"""What the base can take, told by its configs and its tokenizer before anything costly begins."""

from __future__ import annotations

import time

from dopsd import shown
from dopsd.config import RunConfig
from dopsd.contexts import encoder_class
from dopsd.contexts.image_processor import image_tokens
from dopsd.contexts.lengths import TextLength, cut_lines, cut_prompts
from dopsd.data.manifest import Manifest, PrepareSettings
from dopsd.data.pictures.buckets import Bucket, buckets
from dopsd.data.planning.captions import every_prompt
from dopsd.data.prepare.settings import prepare_settings
from dopsd.data.run_data import captions_of, sample_count
from dopsd.driver.monitoring.progress import Report, Show
from dopsd.errors import ConfigError, DataError
from dopsd.evaluation.prompts import read_prompts
from dopsd.models.families.family import Family

CAPTION_SECONDS = 30.0
"""Longest look at captions; those of larger data sets are told of in part."""


def check_limits(config: RunConfig, family: Family) -> None:
    """Raises ModelError for pictures of a size that the base does not take, ConfigError for
    contexts that the base cannot read or in which no text has room."""
    for bucket in _buckets(config):
        family.latent_shape(bucket.height, bucket.width)
    encoder = family.part_config("text_encoder")
    longest = encoder.get("text_config", encoder).get("max_position_embeddings")
    keys = ["text_tokens", *(["image_text_tokens"] if config.context.needs.vlm else [])]
    for key in keys:
        asked = getattr(config.context, key)
        if longest is not None and asked > longest:
            raise ConfigError(
                f"context.{key}: {asked}, allowed: at most {longest} (the positions of the base's "
                "text encoder)"
            )
    student, teacher = _lengths(config, family)
    if student.empty >= student.limit:
        raise ConfigError(
            f"context.text_tokens: {student.limit}, but the chat template alone takes "
            f"{student.empty}; allowed: more than that"
        )
    if teacher.empty >= teacher.limit:
        key, what = "text_tokens", "template and context.instruction"
        if config.context.needs.vlm:
            key, what = "image_text_tokens", "template and an image (context.image_max_pixels)"
        raise ConfigError(
            f"context.{key}: {teacher.limit} are read, but {what} alone take {teacher.empty}; "
            "allowed: more than that"
        )


def check_captions(config: RunConfig, manifest: Manifest, family: Family, show: Show) -> None:
    """Tell of captions that the base reads in part. Raises DataError for one that it cannot read
    (it holds a special token), naming the sample."""
    student, teacher = _lengths(config, family)
    keys, pairs = config.data.caption_keys, config.context.prompt_pairs
    cut: dict[str, dict[str, int]] = {"student": {}, "teacher": {}}
    until, looked_at = time.monotonic() + CAPTION_SECONDS, 0
    extremes: dict[bool, str] = {}
    for sample_id, captions in captions_of(config, manifest):
        for text, detailed in every_prompt(captions, keys, pairs, 0.0):
            for longest, nearer in ((False, min), (True, max)):
                extremes[longest] = nearer(extremes.get(longest, text), text, key=len)
            texts = {"student": (student, text), "teacher": (teacher, detailed or text)}
            for role, (length, read) in texts.items():
                try:
                    tokens = length.tokens_if_cut(read)
                except DataError as error:
                    raise DataError(f"sample {sample_id}: {error}") from None
                if tokens is not None:
                    cut[role][sample_id] = max(tokens, cut[role].get(sample_id, 0))
        looked_at += 1
        if time.monotonic() > until:
            break
    lines = [
        *(_lengths_told(student, extremes) if extremes else []),
        *cut_lines("the captions that the student reads", cut["student"], student.limit, looked_at),
        *cut_lines("the contexts of the teacher", cut["teacher"], teacher.limit, looked_at),
    ]
    if looked_at < (samples := sample_count(config, manifest)):
        lines.append(f"The lengths of {looked_at} of {samples} samples' captions were looked at.")
    if lines:
        show("prepare", Report(lines))


def _lengths_told(student: TextLength, extremes: dict[bool, str]) -> list[str]:
    """Of the shortest and the longest text of all samples, by their characters."""
    least, most = (student.own_tokens(extremes[longest]) for longest in (False, True))
    room = student.limit - student.empty
    return [
        f"Captions: the shortest has {least} tokens ({shown.value(extremes[False][:50])}), the "
        f"longest {most}; {room} are read"
    ]


def tell_of_cut_prompts(config: RunConfig, family: Family, show: Show) -> None:
    """Tell of prompts of the prior that the base reads in part, before it draws them."""
    if config.data.prior.prompts is None:
        return
    prompts = read_prompts(config.data.prior.prompts)
    if lines := cut_prompts(family, (prompt.text for prompt in prompts)):
        show("prepare", Report(lines))


def _lengths(config: RunConfig, family: Family) -> tuple[TextLength, TextLength]:
    """Those of the student's and of the teacher's texts."""
    context = config.context
    student = TextLength(family, context.text_tokens)
    if context.needs.vlm:
        image = image_tokens(config, _buckets(config)) + 2  # what begins and ends it
        return student, TextLength(family, context.image_text_tokens, image)
    if context.needs.reference_tokens:
        instruction = context.instruction or encoder_class(context.name).default_instruction
        beside = len(student.tokenizer(f"\n{instruction}")["input_ids"])
        return student, TextLength(family, context.text_tokens, beside)
    return student, student


def _buckets(config: RunConfig) -> list[Bucket]:
    """Every size of picture that the config prepares."""
    settings: PrepareSettings = prepare_settings(config.data, config.run.seed)
    return [bucket for area in settings.areas for bucket in buckets(area, settings.bucket_multiple)]
