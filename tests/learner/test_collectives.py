"""Collectives wait longer than whatever the run waits for."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import torch

from dopsd.config import TimeoutSection
from dopsd.learner.collectives import collective_seconds, hold_on
from dopsd.learner.group import learner_trainer
from dopsd.ray_cluster.placement import resolve_roles
from tests.helpers.tiny import make_config


def test_they_outlast_both_deadlines(tmp_path: Path) -> None:
    for timeouts in ({"startup": 3600, "step": 60}, {"startup": 60, "step": 7200}):
        config = make_config("unused", timeouts=timeouts)
        trainer = learner_trainer(config, resolve_roles(config, 0.0), {}, str(tmp_path))
        assert trainer.backend_config.timeout_s > max(timeouts.values()) + 30


def test_groups_that_others_made_hold_on_too(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        own = torch.distributed.new_group([0])
        seconds = collective_seconds(TimeoutSection(startup=7200))
        hold_on(seconds)
        for group in (own, torch.distributed.group.WORLD):
            backend = group._get_backend(torch.device("cpu"))
            assert backend.options._timeout == timedelta(seconds=seconds)
    finally:
        torch.distributed.destroy_process_group()
