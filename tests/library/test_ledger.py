from __future__ import annotations

from pathlib import Path

from dopsd.library.ledger import LibraryLedger, fold, read_ledger
from dopsd.library.scheduler import Assignment, Outcome, Tries


def given(concept: str, attempt: int = 1) -> Assignment:
    return Assignment(concept, "worker-0", attempt, fresh=False)


def test_every_step_counts_once_whatever_was_done_twice(tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.jsonl")
    ledger = LibraryLedger(path)
    ledger.start(2, 2)
    ledger.begin(given("a"), "f", 0)
    ledger.saved("a", "f", 20)
    ledger.saved("a", "f", 40)
    ledger.end("a", "f", Outcome.LOST, "its node went away")
    ledger = LibraryLedger(path)  # a scheduler that died, whose last save nobody saw
    ledger.start(2, 2)
    ledger.begin(given("a"), "f", 20)
    ledger.saved("a", "f", 60)
    ledger.end("a", "f", Outcome.DIED, "its worker died")
    ledger.begin(given("a", 2), "f", 60)
    ledger.done("a", "f", 80)
    ledger.begin(given("b"), "g", 0)
    stories = fold(read_ledger(path))
    assert stories["a"].spans == [(0, 20), (20, 60), (60, 80)]
    assert stories["a"].tries == Tries(1, 1, "its worker died") and not stories["a"].worker
    assert stories["b"].worker == "worker-0"


def test_a_ledger_that_was_cut_off_or_damaged_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = LibraryLedger(str(path))
    ledger.begin(given("a"), "f", 0)
    ledger.park("a", "f", "broken, attempt 3")
    whole = path.read_bytes()
    path.write_bytes(
        whole + b'{"event": "nonsense"}\n{"event": "done", "concept": 5}\n{"event": "do'
    )
    again = LibraryLedger(str(path))
    assert len(again.notices) == 1 and "line 3" in again.notices[0]
    again.begin(given("b"), "g", 0)
    assert {n: s.parked for n, s in fold(read_ledger(str(path))).items()} == {
        "a": "broken, attempt 3",
        "b": "",
    }


def test_another_recipe_begins_anew_and_so_does_a_retry(tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.jsonl")
    ledger = LibraryLedger(path)
    for name in ("a", "b"):
        ledger.begin(given(name), "f", 0)
        ledger.end(name, "f", Outcome.FAILED, "nan")
        ledger.park(name, "f", "nan, attempt 1")
    ledger.begin(given("a"), "other", 0)
    ledger.retry("b")
    stories = fold(read_ledger(path))
    assert (stories["a"].fingerprint, stories["a"].parked) == ("other", "")
    assert (stories["b"].parked, stories["b"].tries) == ("", Tries())
