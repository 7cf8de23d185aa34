from __future__ import annotations

from collections import Counter

import pytest

from dopsd.data.manifest import CaptionSet, Manifest, PrepareSettings
from dopsd.data.planning.captions import (
    check_caption_keys,
    check_prompt_pairs,
    draw_caption,
    draw_pair,
    dropped,
)
from dopsd.errors import DataError

CAPTIONS = {"short": "a dog", "long": "a large dog", "zh": "狗"}


def manifest(*sets: tuple[tuple[str, ...], int]) -> Manifest:
    return Manifest(
        source="x",
        settings=PrepareSettings(),
        seen=10,
        samples=sum(count for _, count in sets),
        buckets={},
        concepts={},
        caption_sets=tuple(CaptionSet(keys=keys, samples=count) for keys, count in sets),
        references={},
        fingerprint="",
        row_groups=(),
        quarantined=(),
        notes=(),
    )


def test_draws_are_uniform_per_sample_and_epoch() -> None:
    counts = Counter(
        draw_caption(CAPTIONS, ["short", "zh"], 0, epoch, f"s{sample}")
        for epoch in range(40)
        for sample in range(50)
    )
    assert set(counts) == {CAPTIONS["short"], CAPTIONS["zh"]}
    assert abs(counts[CAPTIONS["short"]] - 1000) < 100


def test_a_draw_depends_on_seed_epoch_and_sample_alone() -> None:
    draws = [draw_caption(CAPTIONS, [], 1, epoch, "a") for epoch in range(30)]
    shuffled = dict(reversed(CAPTIONS.items()))
    assert draws == [draw_caption(shuffled, [], 1, epoch, "a") for epoch in range(30)]
    assert set(draws) == set(CAPTIONS.values())
    assert draws != [draw_caption(CAPTIONS, [], 2, epoch, "a") for epoch in range(30)]
    assert draws != [draw_caption(CAPTIONS, [], 1, epoch, "b") for epoch in range(30)]


def test_an_absent_key_is_drawn_around() -> None:
    for epoch in range(20):
        assert draw_caption(CAPTIONS, ["medium", "short"], 0, epoch, "a") == "a dog"


def test_no_asked_key_present_names_sample_and_keys() -> None:
    with pytest.raises(DataError, match=r"sample dog/1: .*\(medium\); it has: long, short, zh"):
        draw_caption(CAPTIONS, ["medium"], 0, 0, "dog/1")


def test_check_accepts_keys_that_cover_every_sample() -> None:
    data = manifest((("long", "short"), 3), (("short",), 2))
    check_caption_keys(data, [])
    check_caption_keys(data, ["short"])
    check_caption_keys(data, ["long", "short"])
    assert data.caption_keys == {"long": 3, "short": 5}


def test_check_names_an_unknown_key_and_uncovered_samples() -> None:
    data = manifest((("long", "short"), 3), (("short",), 2))
    with pytest.raises(DataError, match=r"'medium' is in no sample of the data, allowed: long, sh"):
        check_caption_keys(data, ["short", "medium"])
    with pytest.raises(DataError, match="2 of 5 samples have none of long; add a key"):
        check_caption_keys(data, ["long"])


def test_a_pair_is_drawn_whole_and_the_same_everywhere() -> None:
    captions = {"short": "s", "detailed": "d", "zh": "z"}
    pairs = [("short", "detailed"), ("zh", "detailed"), ("short", "medium")]
    draws = [draw_pair(captions, pairs, 0, epoch, "a") for epoch in range(30)]
    assert set(draws) == {("s", "d"), ("z", "d")}
    again = dict(sorted(captions.items()))
    assert draws == [draw_pair(again, pairs, 0, epoch, "a") for epoch in range(30)]
    assert draws != [draw_pair(captions, pairs, 1, epoch, "a") for epoch in range(30)]
    with pytest.raises(DataError, match=r"^sample dog: has both captions of no pair .*\[zh, en\]"):
        draw_pair(captions, [("zh", "en")], 0, 0, "dog")


def test_pairs_that_the_data_cannot_serve_are_refused() -> None:
    data = manifest((("long", "short", "zh"), 3), (("short", "zh"), 2))
    check_prompt_pairs(data, [])
    check_prompt_pairs(data, [("short", "long"), ("short", "zh")])
    with pytest.raises(DataError, match=r"no sample has both captions of \[short, medium\]"):
        check_prompt_pairs(data, [("short", "medium")])
    with pytest.raises(DataError, match=r"2 of 5 samples have both captions of none of"):
        check_prompt_pairs(data, [("short", "long")])


def test_dropout_takes_its_share_of_the_draws():
    draws = [dropped(0.25, 3, epoch, f"s{sample}") for epoch in range(20) for sample in range(100)]
    assert 0.2 < sum(draws) / len(draws) < 0.3
    assert draws == [dropped(0.25, 3, e, f"s{s}") for e in range(20) for s in range(100)]
    assert not any(dropped(0.0, 0, epoch, "a") for epoch in range(100))
    assert all(dropped(1.0, 0, epoch, "a") for epoch in range(100))
