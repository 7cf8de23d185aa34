"""A thousand concepts that compute nothing, whose workers and command are killed at any moment."""

from __future__ import annotations

import random
import time

import pytest

from dopsd.library.folder import LEDGER, LibraryFolder
from dopsd.library.ledger import fold, read_ledger
from tests.deploy.nodes import Nodes
from tests.helpers.ports import free_port
from tests.library.elastic import names
from tests.library.test_training import check_done, kill_one

pytestmark = pytest.mark.nightly
COUNT, KILLS, COMMANDS = 1000, 20, 5
LIMIT = 600.0


def test_twenty_workers_and_five_commands_are_killed_and_every_concept_is_done_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("c")
    library, chance = LibraryFolder(f"{folder}/library"), random.Random(1)
    nodes, struck, began = Nodes(folder), set[str](), time.monotonic()
    killed = commands = 0

    def start() -> None:
        nodes.module("library", "tests.library.elastic", str(folder), f"{COUNT}", "0.01", "0.1")

    def done() -> int:
        return len(list((folder / "library" / "concepts").rglob("card.json")))

    try:
        nodes.start("head", 2, "127.0.0.1", free_port())
        nodes.wait("head")
        start()
        while (process := nodes.running["library"]).poll() is None:
            assert time.monotonic() < began + LIMIT, (folder / "library.log").read_text()[-4000:]
            time.sleep(0.3 * chance.random())
            far = done() / COUNT
            if killed < KILLS and far > 0.9 * killed / KILLS and (folder / "pids").is_dir():
                killed += kill_one(folder, struck)
            if commands < COMMANDS and far > 0.9 * (commands + 1) / (COMMANDS + 1):
                nodes.kill("library")
                commands += 1
                start()
        assert process.returncode == 0, (folder / "library.log").read_text()[-4000:]
    finally:
        nodes.stop()
    assert (killed, commands) == (KILLS, COMMANDS)
    check_done(folder, names(COUNT))
    stories = fold(read_ledger(library.file(LEDGER)))
    assert sum(story.tries.deaths for story in stories.values()) <= KILLS
    print(f"{COUNT} done in {time.monotonic() - began:.0f} s")
