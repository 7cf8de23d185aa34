"""One engine, several concepts: each finds its own state, the oldest goes first."""

from __future__ import annotations

import threading
import time

from dopsd.library.disaggregated.turns import SharedEngine, Shelf, Turns


def test_the_oldest_of_those_that_wait_is_next() -> None:
    turns, order = Turns(), list[int]()
    turns.take(9)

    def work(age: int) -> None:
        turns.take(age, every=0.01)
        order.append(age)
        turns.give_back()

    threads = [threading.Thread(target=work, args=(age,)) for age in (5, 3, 8, 1)]
    for thread in threads:
        thread.start()
    while len(turns._waiting) < 4:
        time.sleep(0.001)
    turns.give_back()
    for thread in threads:
        thread.join()
    assert order == [1, 3, 5, 8]
    held = turns.held_seconds
    time.sleep(0.01)
    assert turns.held_seconds == held > 0


def test_a_concept_finds_the_engine_as_it_left_it() -> None:
    engine = {"weights": "none"}
    shared: SharedEngine[str] = SharedEngine()

    def shelf() -> Shelf[str]:
        return Shelf(lambda: engine["weights"], lambda state: engine.update(weights=state))

    one, two = shelf(), shelf()
    shared.clear()
    shared.begin(one)
    engine["weights"] = "one after a step"
    shared.clear()
    assert one.state == "one after a step"
    shared.begin(two)
    engine["weights"] = "two after a step"
    shared.take_up(two)
    assert engine["weights"] == "two after a step"
    shared.take_up(one)
    assert engine["weights"] == "one after a step" and one.state is None
    assert two.state == "two after a step"
    shared.forget(one)
    engine["weights"] = "what one left"
    shared.take_up(two)
    assert engine["weights"] == "two after a step" and one.state is None, "it has ended"
