"""A library on nodes that join, are announced to go, and go without a word: nobody's attempt, and
the bits of a calm library."""

from __future__ import annotations

import pytest

from dopsd.library.folder import LEDGER, LibraryFolder
from dopsd.library.ledger import fold, read_ledger
from tests.deploy.nodes import Nodes
from tests.helpers.ports import free_port
from tests.library.elastic import names
from tests.library.test_training import STEPS, check_done

pytestmark = pytest.mark.nightly
COUNT = 60
TAKEN = "its node will be taken away"
LIMIT = 300.0


def test_workers_follow_nodes_that_join_are_drained_and_die(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("e")
    nodes = Nodes(folder, {"RAY_health_check_period_ms": "1000"})
    try:
        nodes.start("head", 1, "127.0.0.1", free_port())
        nodes.wait("head")
        library = nodes.module(
            "library", "tests.library.elastic", str(folder), f"{COUNT}", "0.3", "1"
        )
        nodes.await_line("library", "  done:")
        assert "; 2 in flight" not in (folder / "library.log").read_text(), "room for one"

        nodes.start("second", 2, "127.0.0.1", 0)
        nodes.await_line("library", "; 3 in flight", LIMIT)
        nodes.announce_end(cpus=2, seconds=300)
        nodes.await_line("library", TAKEN, LIMIT)

        nodes.start("third", 2, "127.0.0.1", 0)
        nodes.await_line("library", " s on worker-4", LIMIT)  # which took the place of one
        nodes.kill("second")
        nodes.kill("third")
        assert library.wait(timeout=LIMIT) == 0, (folder / "library.log").read_text()[-4000:]
    finally:
        nodes.stop()
    check_done(folder, names(COUNT))
    entries = read_ledger(LibraryFolder(f"{folder}/library").file(LEDGER))
    ends = [entry for entry in entries if entry["event"] in ("lost", "died", "failed")]
    assert {entry["event"] for entry in ends} == {"lost"}, ends
    taken = [entry for entry in ends if entry["reason"] == TAKEN]
    assert taken and len(taken) < len(ends), "one node was announced to go, one was not"
    begun = [entry for entry in entries if entry["event"] == "begin"]
    assert {entry["attempt"] for entry in begun} == {1}
    for entry in taken:  # each goes on from the step after the notice
        own = [e for e in begun if e["concept"] == entry["concept"]]
        assert 0 < own[1]["step"] < STEPS
    assert not any(story.tries.failures for story in fold(entries).values())
