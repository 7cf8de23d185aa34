"""Six concepts, an adapter of each: alone, one after the other on one worker, and in another order
on two workers of which one is killed, by a command that is interrupted and given again."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from dopsd.checkpoint.learner_state import STUDENT_FILE
from dopsd.config import RunConfig
from dopsd.driver.monitoring.progress import Event
from dopsd.driver.train import train
from dopsd.library.catalogue.catalogue import Catalogue, Concept
from dopsd.library.folder import LEDGER, LibraryFolder
from dopsd.library.ledger import read_ledger
from dopsd.library.run import train_library
from dopsd.library.verify import verify_library
from dopsd.models.checksum import sha256
from dopsd.records import unpack
from tests.helpers.runs import quiet
from tests.library.test_library import library_config, write_source
from tests.library.test_training import Crash, done_lines

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("ray_cluster")]

STEPS = 5
CONCEPTS = {"a": 3, "b": 5, "c": 4, "d": 6, "e": 3, "f": 4}


def fused(base: Path, folder: Path, name: str, workers: int = 1, **sections: object) -> RunConfig:
    steps = {"per_image": 1, "min": STEPS, "max": STEPS}
    library = {"steps": steps, "workers": workers, "keep": ["lora"]}
    checkpoint = {"every_steps": 2}
    return library_config(base, folder, name, library=library, checkpoint=checkpoint, **sections)


def kill_a_worker() -> bool:
    """SIGKILL for a worker of this process's cluster; whether there was one."""
    for process in psutil.Process(os.getpid()).children(recursive=True):
        try:
            if "WorkerActor.train" in " ".join(process.cmdline()):
                process.kill()
                return True
        except psutil.NoSuchProcess:
            continue
    return False


def adapters(folder: str) -> dict[str, str]:
    return {n: card.adapter_sha256 for n, card in LibraryFolder(folder).cards(CONCEPTS).items()}


def test_six_concepts_are_as_if_trained_alone(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_source(tmp_path / "source", CONCEPTS)
    calm = train_library(fused(tiny_base, tmp_path, "calm"), quiet)
    assert calm.problems == [] and calm.trained == len(CONCEPTS)
    alone = {}
    for name in CONCEPTS:
        config = fused(tiny_base, tmp_path, f"alone-{name}", data={"concepts": [name]})
        state = Path(train(config, quiet).folder, "checkpoints", f"step-{STEPS:06d}", STUDENT_FILE)
        alone[name] = sha256(unpack(state.read_bytes())[0])
    assert len(set(alone.values())) == len(CONCEPTS)
    assert adapters(calm.folder) == alone

    def shuffled(catalogue: Catalogue) -> list[Concept]:
        return [catalogue.concepts[name] for name in ("e", "b", "f", "a", "d", "c")]

    monkeypatch.setattr(Catalogue, "trained", property(shuffled))
    done, killed, config = 0, False, fused(tiny_base, tmp_path, "rough", workers=2)

    def trouble(phase: str, event: Event) -> None:
        nonlocal done, killed
        done += done_lines(event)
        if done >= 1 and not killed:
            killed = kill_a_worker()
        if killed and done >= 3:
            raise Crash

    with pytest.raises(Crash):
        train_library(config, trouble)
    rough = train_library(config, quiet)
    assert rough.counts.done == len(CONCEPTS) and 0 < rough.trained <= 3
    assert adapters(rough.folder) == alone
    assert verify_library(rough.folder).problems == []
    ends = [e["event"] for e in read_ledger(LibraryFolder(rough.folder).file(LEDGER))]
    assert ends.count("died") == 1
