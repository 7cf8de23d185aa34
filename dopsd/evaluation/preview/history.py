"""How pictures changed over training: the adapters kept on the way, drawn at the end.

The learner keeps both adapters of a few versions as files; after the run the preview task draws
each of them from the same noise: the student's rollout, the teacher's velocities at its states, and
the teacher's own rollout. Of own prompts it draws what idle rollout workers did not draw before
(``coordinator/drawings.py``). In the run folder's ``preview``:

- ``weights/v000020.student.safetensors`` and ``.teacher``: the kept adapters, as exported LoRAs,
  and ``v000020.student.modules.safetensors`` where more was trained beside them;
- ``trajectories/v000020-s00.safetensors``: sample 0 under version 20, as in docs/trajectories.md;
- ``history/v000020-s00.png``: its strip, two rows of K + 1 pictures: the student's clean estimate
  at each state and its drawing, the teacher's at the same states and its own drawing;
- ``prompts/v000020-p00.png``: own prompt 0 (`preview.prompts`) as the student draws it;
- ``history/target-s00.png``, and ``history.json``, which says what is what.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dopsd.data.pictures.images import encode_png
from dopsd.evaluation.preview.sampler import Files, PreviewSampler
from dopsd.method.noise import NoisePurpose
from dopsd.method.objective import state_weights
from dopsd.method.rollout import rollout, score
from dopsd.method.schedule import clean_estimate
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.models.sampling import batch_velocity, training_sigmas
from dopsd.records import EncodedBatch, SampleInfo, TrainingBatch
from dopsd.report.sheet import strip
from dopsd.run_folder.files import PREVIEW
from dopsd.run_folder.preview_files import HISTORY, prompt_path, strip_path, target_path
from dopsd.run_folder.prompt_history import Drawn, prompt_facts
from dopsd.run_folder.trajectories import trajectory_record

Adapters = tuple[Files, Files]
"""Exported weights of student and teacher."""


def sample_history(
    sampler: PreviewSampler,
    versions: list[tuple[int, Callable[[], Adapters] | None]],
    drawn: Collection[Drawn] = (),
) -> dict[str, bytes]:
    """Files of the run folder, by path. ``versions``: numbers in order, each with what reads its
    adapters; None stands for what the run began with. The last adapters stay loaded where there
    are samples. ``drawn``: own prompts whose pictures are there."""
    files, rows, pictures = {}, [], set(drawn)
    prompts = range(len(sampler.prompts))
    for version, read in versions:
        left = [index for index in prompts if (version, index) not in drawn]
        if not sampler.samples and not left:
            continue  # its weights are not needed
        if read is None:
            sampler.begin()
        else:
            sampler.load(*read())
        for index in range(len(sampler.samples)):
            encoded, scored, own = _trajectory(sampler, version, index)
            name = f"{PREVIEW}/trajectories/v{version:06d}-s{index:02d}.safetensors"
            files[name] = trajectory_record(sampler.config, encoded, scored)
            estimates, image = _strip(sampler, scored, own)
            files[strip_path(version, index)] = encode_png(image)
            rows.append({"version": version, "sample": index, "states": estimates})
        for index in left:
            files[prompt_path(version, index)] = encode_png(sampler.generate_prompt(index))
            pictures.add((version, index))
    for index, sample in enumerate(sampler.samples):
        files[target_path(index)] = encode_png(strip([[Image.fromarray(sample.target)]]))
    samples = [{"id": s.sample_id, "prompt": s.prompt} for s in sampler.samples]
    facts = prompt_facts(sampler.config, sampler.size, pictures)
    record = {"samples": samples, "rows": rows, **facts}
    files[HISTORY] = (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode()
    return files


@torch.no_grad()
def _trajectory(
    sampler: PreviewSampler, version: int, index: int
) -> tuple[EncodedBatch, TrainingBatch, Tensor]:
    """The sample's training rollout under the loaded adapters, scored, and the latents
    [1, C, h, w] of the teacher's own drawing."""
    config, sample, noise = sampler.config, sampler.samples[index], sampler.noise(index)
    height, width = sample.target.shape[:2]
    sigmas = training_sigmas(config, sampler.family, height, width)

    def velocity(role: str, repeat: int = 1) -> Any:
        sampler.use(role)
        context = sampler.context(index, role).repeat(repeat)
        return batch_velocity(sampler.family, sampler.pipeline.transformer, context, sampler.dtype)

    states = rollout(velocity(STUDENT), noise, sigmas)
    target = score(velocity(TEACHER, len(states) - 1), states[:-1], sigmas[:-1])
    own = rollout(velocity(TEACHER), noise, sigmas)[-1]
    ids, prompts = (sample.sample_id,), (sample.prompt,)
    info = SampleInfo(
        NoisePurpose.PREVIEW, index, ids, prompts, height, width, len(sampler.samples)
    )
    student, teacher = sampler.contexts[index]
    scored = TrainingBatch(
        info,
        policy_version=version,
        teacher_version=version,
        states=states[:-1].cpu(),
        sigmas=sigmas[:-1],
        student=student,
        target_velocity=target.cpu(),
        weight=state_weights(sigmas[:-1], config.method.weighting),
        finished=states[-1].cpu(),
    )
    return EncodedBatch(info, student, teacher), scored, own.cpu()


def _strip(
    sampler: PreviewSampler, scored: TrainingBatch, own: Tensor
) -> tuple[list[dict[str, float]], Image.Image]:
    """Sigma and mean squared difference of the clean estimates at each state; the strip."""
    assert scored.finished is not None, "the rollout is whole"
    states = torch.cat([scored.states, scored.finished.unsqueeze(0)])
    sigmas = torch.cat([scored.sigmas, torch.zeros(1)])
    students, teachers, facts = [], [], []
    for k, target in enumerate(scored.target_velocity):
        velocity = (states[k + 1] - states[k]) / (sigmas[k + 1] - sigmas[k])
        student = clean_estimate(states[k], velocity, sigmas[k])
        teacher = clean_estimate(states[k], target, sigmas[k])
        students.append(student)
        teachers.append(teacher)
        difference = float((student - teacher).square().mean())
        facts.append({"sigma": float(sigmas[k]), "difference": difference})
    rows = [[*students, scored.finished], [*teachers, own]]
    with torch.no_grad():
        images = [[sampler.family.decode(sampler.pipeline, x)[0] for x in row] for row in rows]
    return facts, strip(images)
