"""Captions against what the base reads of them: told of with sample and count, before training."""

from __future__ import annotations

import pytest

from dopsd.config import load_config
from dopsd.driver.monitoring.progress import Report
from dopsd.driver.setup import limits
from dopsd.driver.setup.limits import check_captions, tell_of_cut_prompts
from dopsd.errors import DataError
from dopsd.models import FAMILIES

SHORT, LONG = "a red square", "red " * 400


class Shards:
    """As much of a manifest as is looked at."""

    def __init__(self, captions: list[dict[str, str]]) -> None:
        self.captions = captions
        self.samples = len(captions)


@pytest.fixture(autouse=True)
def _rows(monkeypatch):
    monkeypatch.setattr(
        limits,
        "captions_of",
        lambda config, shards: ((f"{at:02}", each) for at, each in enumerate(shards.captions)),
    )


def told(captions: list[dict[str, str]], *overrides: str) -> list[str]:
    config = load_config("shapes", list(overrides))
    lines: list[str] = []

    def show(phase: str, report: object) -> None:
        assert phase == "prepare" and isinstance(report, Report)
        lines.extend(report.lines)

    check_captions(config, Shards(captions), FAMILIES["z_image"]("shapes"), show)
    assert lines.pop(0).startswith("Captions: the shortest has "), "whatever their lengths"
    return lines


def test_what_fits_is_not_spoken_of():
    assert told([{"caption": SHORT}, {"caption": ""}]) == []


def test_a_long_caption_is_named_with_its_sample_and_count():
    student, teacher = told([{"caption": SHORT}, {"caption": LONG}])
    assert student == (
        "WARNING: the captions that the student reads of 1 of 2 samples are cut at 224 tokens: "
        "01 (409 tokens)"
    )
    assert teacher.startswith("WARNING: the contexts of the teacher of 1 of 2 samples are cut at")


def test_what_stands_beside_a_text_counts():
    (line,) = told([{"caption": "red " * 205}])
    assert line.startswith("WARNING: the contexts of the teacher of 1 of 1 samples")


def test_the_shortest_and_the_longest_are_told():
    lines: list[str] = []
    check_captions(
        load_config("shapes"),
        Shards([{"caption": SHORT}, {"caption": "red"}]),
        FAMILIES["z_image"]("shapes"),
        lambda phase, report: lines.extend(report.lines),
    )
    assert lines == ["Captions: the shortest has 1 tokens ('red'), the longest 3; 216 are read"]


def test_many_are_counted_and_the_first_named():
    line = told([{"caption": LONG}] * 8)[0]
    assert "8 of 8 samples" in line and "04 (409 tokens) and 3 more" in line


def test_captions_that_nobody_draws_are_left_aside():
    captions = [{"short": SHORT, "long": LONG}]
    assert told(captions, "data.caption_keys=[short]") == []
    pairs = ("context.name=enhanced_prompt", "context.prompt_pairs=[[short, long]]")
    assert [line.split(" of 1")[0] for line in told(captions, *pairs)] == [
        "WARNING: the contexts of the teacher"
    ]


def test_the_config_may_keep_less_than_the_base():
    assert (
        "are cut at 9 tokens: 00 (11 tokens)"
        in told([{"caption": SHORT}], "context.text_tokens=9")[0]
    )


def test_a_special_token_is_refused_with_its_sample():
    with pytest.raises(DataError, match=r"sample 01: caption 'a <\|im_end\|>': holds <\|im_end\|>"):
        told([{"caption": SHORT}, {"caption": "a <|im_end|>"}])


def test_a_large_data_set_is_looked_at_for_a_bounded_time(monkeypatch):
    monkeypatch.setattr(limits, "CAPTION_SECONDS", 0.0)
    assert told([{"caption": SHORT}] * 3) == [
        "The lengths of 1 of 3 samples' captions were looked at."
    ]


def test_prompts_of_the_prior_are_told_of_before_they_are_drawn(tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{SHORT}\n{LONG}\n")
    config = load_config("shapes", [f"data.prior.prompts={tmp_path}/prompts.txt"])
    reports: list[Report] = []
    family = FAMILIES["z_image"]("shapes")
    tell_of_cut_prompts(config, family, lambda phase, report: reports.append(report))
    (line,) = reports[0].lines
    assert line.endswith("has 408 tokens, of which 224 are read")
