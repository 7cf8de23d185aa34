"""A checkpoint that lacks what a run resumes from is refused, though all that it lists is whole."""

from __future__ import annotations

from typing import Any

import pytest

from dopsd.checkpoint.completeness import missing
from dopsd.checkpoint.folder import CheckpointManifest, FileRecord, policy_file
from dopsd.checkpoint.learner_state import FILES
from tests.helpers.tiny import make_config

RECORD = FileRecord(bytes=1, sha256="0" * 64)
STEP, LAG = 5, 2


def manifest(names: list[str], versions: range, learners: int = 1, large: Any = ()) -> Any:
    return CheckpointManifest(
        step=STEP,
        policy_versions=tuple(versions),
        config={},
        data="",
        plan="",
        learners=learners,
        written=0.0,
        files=dict.fromkeys(names, RECORD),
        large=dict.fromkeys(large, RECORD),
    )


VERSIONS = range(STEP - LAG, STEP + 1)
PUBLISHED = [policy_file(version, role) for version in VERSIONS for role in ("student", "teacher")]


def test_of_a_lora_each_file_and_version_is_asked_for() -> None:
    config = make_config("base", max_policy_lag=LAG)
    names = [*FILES, *PUBLISHED]
    assert missing(config, manifest(names, VERSIONS)) is None
    for name in names:
        rest = [other for other in names if other != name]
        assert missing(config, manifest(rest, VERSIONS)) == f"incomplete, {name} is not in it"
    told = missing(config, manifest(names, VERSIONS[1:]))
    assert told == f"incomplete, version {STEP - LAG} of the weights is not in it"
    fused = make_config("base", source="fused")
    assert missing(fused, manifest([*FILES], range(0))) is None


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (["learner-00000-of-00002-a", "learner-00001-of-00002-b"], None),
        (["learner-00000-of-00002-a"], "incomplete, 1 learners' parts of 2 are in it"),
        (["learner-00000-of-00002-a", "learner-00000-of-00002-b"], "incomplete, 2 learners'"),
        (["learner-00000-of-00003-a", "learner-00001-of-00003-b"], "incomplete, 2 learners'"),
    ],
)
def test_of_a_whole_model_the_part_of_each_learner_is(parts: list[str], told: str | None) -> None:
    config = make_config("base", adapters="full", source="fused", method={"teacher": "live"})
    large = [f"{part}.safetensors" for part in parts]
    found = missing(config, manifest([], range(0), 2, large))
    assert found == told or (told and found and found.startswith(told))
