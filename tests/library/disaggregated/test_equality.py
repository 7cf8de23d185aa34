"""A concept does not know that others share its pools and its engine: its adapter is that of a run
alone with the same source, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from dopsd.checkpoint.learner_state import STUDENT_FILE
from dopsd.config import RunConfig
from dopsd.driver.train import train
from dopsd.library.folder import LibraryFolder
from dopsd.library.run import train_library
from dopsd.models.checksum import sha256
from dopsd.records import unpack
from tests.helpers.runs import quiet
from tests.library.test_library import library_config, write_source

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("ray_cluster")]

STEPS = 3
CONCEPTS = {"a": 3, "b": 5, "c": 4, "d": 6}
"""Pictures of each: 3 make steps that are smaller than a global batch, which are padded."""
OWN = "d"
"""It has a weighting of its own, which is the teacher's workers' to know."""


def disaggregated(base: Path, folder: Path, name: str, **sections: object) -> RunConfig:
    return library_config(
        base,
        folder,
        name,
        source="disaggregated",
        max_policy_lag=0,
        learner={"steps": STEPS, "cpus": 0.3},
        checkpoint={"every_steps": STEPS},
        **sections,
    )


def alone(base: Path, folder: Path, concept: str) -> str:
    """SHA-256 of the adapter that `dopsd train` gives of a concept."""
    own = {"method": {"weighting": "velocity"}} if concept == OWN else {}
    config = disaggregated(base, folder, f"alone-{concept}", data={"concepts": [concept]}, **own)
    summary = train(config, quiet)
    checkpoint = Path(summary.folder) / "checkpoints" / f"step-{STEPS:06d}" / STUDENT_FILE
    return sha256(unpack(checkpoint.read_bytes())[0])


def test_four_concepts_with_one_two_and_three_in_flight_are_as_if_trained_alone(
    tiny_base: Path, tmp_path: Path
) -> None:
    write_source(tmp_path / "source", CONCEPTS)
    found = {}
    for in_flight in (3, 1, 2):
        config = disaggregated(
            tiny_base,
            tmp_path,
            f"library-{in_flight}",
            library={
                "steps": {"per_image": 1, "min": STEPS, "max": STEPS},
                "in_flight": in_flight,
                "overrides": {OWN: {"method.weighting": "velocity"}},
            },
        )
        summary = train_library(config, quiet)
        assert summary.problems == [] and summary.trained == len(CONCEPTS)
        cards = LibraryFolder(summary.folder).cards(list(CONCEPTS))
        found[in_flight] = {name: card.adapter_sha256 for name, card in cards.items()}
    assert found[1] == found[2] == found[3]
    assert len(set(found[1].values())) == len(CONCEPTS)
    assert found[1] == {name: alone(tiny_base, tmp_path, name) for name in CONCEPTS}
