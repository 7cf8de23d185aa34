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


def test_who_waits_gives_signs_of_life_while_others_take_short_turns() -> None:
    turns, over, told = Turns(), threading.Event(), list[float]()

    def fast(age: int) -> None:
        while not over.is_set():
            turns.take(age)
            time.sleep(0.001)
            turns.give_back()

    def youngest() -> None:
        turns.take(9, lambda: told.append(time.monotonic()), every=0.05)
        turns.give_back()

    holders = [threading.Thread(target=fast, args=(age,)) for age in (1, 2)]
    turns.take(0)  # until all of them wait
    waiting = threading.Thread(target=youngest)
    for thread in (*holders, waiting):
        thread.start()
    while len(turns._waiting) < 3:
        time.sleep(0.001)
    turns.give_back()
    until = time.monotonic() + 10
    while len(told) < 3 and waiting.is_alive() and time.monotonic() < until:
        time.sleep(0.01)
    over.set()
    for thread in (*holders, waiting):
        thread.join()
    assert len(told) >= 3
    assert min(later - one for one, later in zip(told, told[1:])) >= 0.05


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
