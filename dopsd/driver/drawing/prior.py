"""Prior preservation: the base's own samples, drawn once and kept beside the shards.

They train beside the data, so that what the base knew is asked for as well: prompts whose targets
are what it draws for them anyway.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from dopsd.config import RunConfig
from dopsd.config.data import PRIOR
from dopsd.data.manifest import MANIFEST, Manifest, has_manifest
from dopsd.data.pictures.buckets import commonest
from dopsd.data.planning.join import joined
from dopsd.data.prepare.folder import KIND
from dopsd.data.prepare.run import load_prepared, prepare
from dopsd.data.prepare.settings import prepare_settings
from dopsd.data.sources.rows import CAPTION_KEY
from dopsd.driver.monitoring.progress import Show
from dopsd.errors import ConfigError, StorageError
from dopsd.evaluation.prompts import read_prompts
from dopsd.evaluation.spec import BASE, EvaluatedModel, EvaluateSpec
from dopsd.evaluation.worker import EvaluationWorker
from dopsd.files import storage
from dopsd.method.noise import NoisePurpose
from dopsd.models.fingerprint import fingerprint, model_identity
from dopsd.models.lora.merge import drawn_merged, merged_record
from dopsd.models.pretrained import portable_base
from dopsd.ownership.ownership import OwnedFolder
from dopsd.ownership.scratch import OWNER_FILE, scratch_folder
from dopsd.ray_cluster.job_pool import Job, JobPool
from dopsd.ray_cluster.placement import Role

BATCH = 8
"""Samples of a call of the pipeline."""
_SAMPLES = "samples.jsonl"
"""What was drawn, as the source of the shards."""
RESTARTS = 3
"""How often a worker that dies while it draws is replaced."""


def check_prior(config: RunConfig) -> None:
    """Refuse prompts that cannot be read or that ask for more than a text, before anything starts.

    Raises ConfigError in one line.
    """
    if config.data.prior.prompts is None:
        return
    for prompt in read_prompts(config.data.prior.prompts):
        for field in ("seeds", "references"):
            if getattr(prompt, field):
                raise ConfigError(
                    f"data.prior.prompts: {config.data.prior.prompts}: {prompt.text[:60]!r} has "
                    f"{field}, allowed: none (the base draws data.prior.count samples from the "
                    "texts alone)"
                )


def with_prior(
    config: RunConfig,
    manifest: Manifest,
    learner: Role,
    show: Show,
    before_drawing: Callable[[], object] = lambda: None,
) -> Manifest:
    """``manifest`` with the prior's samples; they are drawn where they do not exist yet.

    Drawn on the learners' share, which is free before training, in the commonest bucket of the
    data. Samples of another making (base, prompts, count, steps, size, seed) lie in a folder of
    their own. Without ``data.prior.prompts`` the manifest is returned as it is. Whatever
    ``before_drawing`` raises is raised before anything is drawn; ConfigError when the samples
    cannot be written beside the shards.
    """
    if config.data.prior.prompts is None:
        return manifest
    spec, seeds = _spec(config, manifest)
    identity = {
        "base": model_identity(spec.base, spec.revision),
        "family": spec.family,
        "dtype": spec.dtype,
        "size": [spec.height, spec.width],
        "steps": spec.steps,
        "texts": [prompt.text for prompt in spec.prompts],
        "seeds": seeds,
        "noise": int(NoisePurpose.PRIOR),
        "keys": _caption_keys(config),
        # How many may be bad decides nothing of what is drawn, and may change on resume; what is
        # drawn has pictures and no masks.
        "settings": prepare_settings(config.data, config.run.seed).model_dump(
            exclude={"max_bad_fraction", "masks", "drawn_size"}
        ),
    }
    if spec.quantize != "none":  # left out, so that older samples are found
        identity["quantize"] = spec.quantize
    identity |= merged_record(spec.merge)
    folder = f"{PRIOR}-{fingerprint(identity)}"
    shards = storage.join(config.shards, folder)
    if not has_manifest(shards):
        before_drawing()
        with placed_beside(shards) as aside:
            draw_samples(config, spec, seeds, aside, shards, learner, show)
    return joined(manifest, load_prepared(shards, config.data), folder)


@contextmanager
def placed_beside(shards: str) -> Iterator[str]:
    """A folder of its own to draw into; at the end it is moved to ``shards``, complete or not at
    all. Who comes second leaves what is there. Raises ConfigError when it cannot be written."""
    parent, _, name = shards.rpartition("/")
    with ExitStack() as stack:
        try:
            _make_room(shards)
            aside = stack.enter_context(scratch_folder(parent, f".{name}."))
        except (OSError, StorageError) as error:
            raise ConfigError(
                f"data.prior.prompts: given, but their samples cannot be written beside the "
                f"shards: {error}; allowed: shards in a folder that can be written, or a run with "
                "the same settings where it can, which leaves them there"
            ) from None
        yield aside
        if not has_manifest(shards):
            _make_room(shards)
            storage.remove(storage.join(aside, OWNER_FILE))
            storage.move_folder(aside, shards, last=MANIFEST)


def _make_room(shards: str) -> None:
    """Take away what somebody left of the same samples half moved, which happens on S3. Raises
    ConfigError for what is none of ours."""
    own = OwnedFolder(shards, KIND, "data.shards")
    if has_manifest(shards):
        return
    if own.record() is not None:
        own.remove(own.entries())
    own.check()


def _spec(config: RunConfig, manifest: Manifest) -> tuple[EvaluateSpec, list[int]]:
    """What is drawn, and a seed of each sample: a prompt that comes again is drawn from other
    noise."""
    prior = config.data.prior
    assert prior.prompts is not None
    prompts = read_prompts(prior.prompts)
    bucket = commonest(manifest.buckets)
    seeds = [config.run.seed + index // len(prompts) for index in range(prior.count)]
    spec = EvaluateSpec(
        out="",  # nothing of an evaluation is written
        prompts=tuple(prompts[index % len(prompts)] for index in range(prior.count)),
        base=portable_base(config.model.base),
        family=config.model.family,
        revision=config.model.revision,
        dtype=config.model.dtype,
        attention=config.model.attention,
        quantize=config.model.quantize,
        merge=drawn_merged(config),
        height=bucket.height,
        width=bucket.width,
        steps=(prior.steps or config.preview.steps or config.method.steps,),
    )
    return spec, seeds


def _caption_keys(config: RunConfig) -> list[str]:
    """The run draws among these keys, so that a sample needs its prompt under each of them."""
    return config.data.caption_keys or [CAPTION_KEY]


def drawing_role(learner: Role) -> Role:
    """What draws, on the share of the learners without which there is no start."""
    return Role("prior", learner.needed, learner.cpus, learner.gpus, labels=learner.labels)


def draw_samples(
    config: RunConfig,
    spec: EvaluateSpec,
    seeds: list[int],
    shards: str,
    final: str,
    learner: Role,
    show: Show,
) -> None:
    """Draw the samples of ``spec`` into ``shards``, which will be called ``final``."""
    names = [f"{index:06}" for index in range(len(seeds))]
    chunks: dict[Job, list[str]] = {}
    for start in range(0, len(names), BATCH):
        part = slice(start, start + BATCH)
        texts = [prompt.text for prompt in spec.prompts[part]]
        what = f"drawing {len(texts)} samples of the base"
        job = Job(what, "generate", (EvaluatedModel(BASE), texts, seeds[part], spec.steps[0]))
        chunks[job] = names[part]
    own = OwnedFolder(shards, KIND, "data.shards")
    own.claim(*map(_picture, names), _SAMPLES)
    done = 0

    def keep(job: Job, pictures: list[bytes]) -> None:
        nonlocal done
        for name, png in zip(chunks[job], pictures, strict=True):
            storage.write_bytes(storage.join(shards, _picture(name)), png)
        done += len(pictures)
        show("prepare", f"samples of the base: {done} of {len(names)}")

    with JobPool(
        EvaluationWorker,
        (spec, learner.device, NoisePurpose.PRIOR),
        drawing_role(learner),
        start_s=config.timeouts.startup,
        step_s=config.timeouts.step,
        restarts=RESTARTS,
    ) as pool:
        pool.run(list(chunks), keep)
    rows = [
        {
            "id": f"{PRIOR}/{name}",
            "image": _picture(name),
            "concept": PRIOR,
            "captions": dict.fromkeys(_caption_keys(config), prompt.text),
        }
        for name, prompt in zip(names, spec.prompts, strict=True)
    ]
    table = storage.join(shards, _SAMPLES)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    storage.write_bytes(table, text.encode(), verbatim=True)
    prepare(
        table,
        shards,
        prepare_settings(config.data, config.run.seed),
        lambda stage, done, total: show("prepare", f"{stage}: {done} of {total}"),
        cpus_per_task=min(1.0, learner.cpus),
        name=storage.join(final, _SAMPLES),
    )


def _picture(name: str) -> str:
    return f"pictures/{name}.png"
