"""Own prompts made ready for the workers that draw them while a run trains."""

from __future__ import annotations

import ray

from dopsd.config import RunConfig
from dopsd.coordinator.messages import PromptsToDraw
from dopsd.data.manifest import Manifest
from dopsd.data.pictures.buckets import commonest
from dopsd.driver.monitoring.progress import Report, Show
from dopsd.errors import DopsdError
from dopsd.evaluation.preview.sampler import encode_prompts
from dopsd.ray_cluster.placement import Role
from dopsd.ray_cluster.task import run_task
from dopsd.run_folder.files import PREVIEW
from dopsd.run_folder.outputs import owned
from dopsd.run_folder.preview_files import HISTORY
from dopsd.run_folder.prompt_history import drawn_while_training


def prompts_to_draw(
    config: RunConfig, manifest: Manifest, learner: Role, show: Show
) -> PromptsToDraw | None:
    """The own prompts, encoded on the learners' share, which is free before training: the workers
    that draw have no text encoder. None when all are drawn after training: without rollout workers
    of a student on the base that pictures are drawn with, or when encoding fails, which is told.
    """
    if not drawn_while_training(config):
        return None
    doing = f"encoding {len(config.preview.prompts)} own prompts"
    show("start", doing)
    try:
        contexts = run_task(
            PREVIEW, doing, learner, config.timeouts.startup, encode_prompts, config, learner.device
        )
    except DopsdError as error:
        # What an earlier start of the run has drawn, nobody follows: it is drawn again.
        owned(config.run.folder).remove([HISTORY])
        show("start", Report([f"preview.prompts: drawn after training alone: {error}"]))
        return None
    bucket = commonest(manifest.buckets)
    return PromptsToDraw(tuple(map(ray.put, contexts)), (bucket.height, bucket.width))
