"""What preparing says at its end: what in the data is likely other than its owner believes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from dopsd.data.manifest import PrepareSettings
from dopsd.data.planning.class_words import whole_word
from dopsd.data.prepare.duplicates import near_copies
from dopsd.data.prepare.facts import Inspected, PictureFacts
from dopsd.data.sources.fields import shown
from dopsd.data.sources.rows import SourceRow

Samples = Sequence[tuple[SourceRow, Inspected]]
"""The usable samples and what is known of them."""
_ENLARGED, _CROPPED = 1.05, 0.9
"""Scale of a side, and share of the area that is left, beyond which they are counted."""
_UNEQUAL = 2
"""Times as many samples as the smallest concept has."""
_PLACEHOLDER = re.compile(
    r"\{\{?[^{}\n]{0,40}\}\}?|\$\{[^}\n]{0,40}\}|<[A-Za-z_ -]{1,30}>|\[[A-Za-z_ -]{1,30}\]"
    r"|\bTODO\b|\bFIXME\b|(?i:\blorem ipsum\b)|\ufffd"
)
"""What programs and people leave where a word was meant to be."""
_NO_WORDS = {"none", "null", "nan", "undefined", "n/a", "caption", "untitled"}
"""Whole captions that say nothing."""


def findings(samples: Samples, settings: PrepareSettings) -> list[str]:
    """Lines for the user, none where there is nothing to say."""
    pictures = [(row, found.facts) for row, found in samples if found.facts is not None]
    return [
        *_concepts([row for row, _ in samples]),
        *_captions([row for row, _ in samples], settings.token),
        *_lines(samples, settings),
        *_pictures(pictures),
        *_copies(pictures),
    ]


def _concepts(rows: Sequence[SourceRow]) -> list[str]:
    counts = Counter(row.concept or "" for row in rows).most_common()
    if len(counts) < 2 or counts[0][1] < _UNEQUAL * counts[-1][1]:
        return []
    (most, many), (least, few) = counts[0], counts[-1]
    return [
        f"concepts hold from {few} samples ({shown(least)}) to {many} ({shown(most)}): trained "
        "together, they come as often as that (data.balance=concepts: equally often)"
    ]


def _captions(rows: Sequence[SourceRow], token: str) -> list[str]:
    texts = [text for row in rows for text in row.captions.values()]
    lines = []
    word = re.compile(whole_word(token))
    without = sum(word.search(text) is None for text in texts)
    if texts and without == len(texts):
        lines.append(
            f"no caption holds {shown(token)}, the word for what is new (data.token names another)"
        )
    elif without:
        lines.append(f"{without} of {len(texts)} captions lack {_bare(token)} (data.token)")
    left: Counter[str] = Counter()
    for text in texts:
        left.update({found for found in _PLACEHOLDER.findall(text) if found != token})
        if text.lower() in _NO_WORDS:
            left[text] += 1
    if left:
        found = ", ".join(f"{shown(what)} ({count})" for what, count in left.most_common(5))
        lines.append(f"placeholders left in captions: {found}")
    same = Counter(texts)
    text, count = same.most_common(1)[0] if same else ("", 0)
    if count > 1 and count > len(texts) / 2:
        lines.append(f"{count} of {len(texts)} captions are the same: {shown(text[:50])}")
    return lines


def _bare(token: str) -> str:
    return shown(token).strip("'\"")


def _lines(samples: Samples, settings: PrepareSettings) -> list[str]:
    several = sum(found.several_lines for _, found in samples)
    if not several:
        return []
    each = "a caption of its own" if settings.caption_lines == "captions" else "part of one caption"
    other = "paragraph" if settings.caption_lines == "captions" else "captions"
    return [
        f"{_files(several, 'caption file')} with several lines: each line is {each} "
        f"(data.caption_lines={other} changes that)"
    ]


def _pictures(pictures: Sequence[tuple[SourceRow, PictureFacts]]) -> list[str]:
    lines = []
    total = len(pictures)
    enlarged = [(facts.scale, row, facts) for row, facts in pictures if facts.scale > _ENLARGED]
    if enlarged:
        scale, row, facts = max(enlarged, key=lambda one: one[0])
        lines.append(
            f"{len(enlarged)} of {total} pictures are enlarged, most of all {row.where} "
            f"({facts.width}x{facts.height}) {scale:.3g} times a side (data.max_enlarge, "
            "data.min_side and data.pixel_area decide)"
        )
    cropped = [(facts.kept, row) for row, facts in pictures if facts.kept < _CROPPED]
    if cropped:
        kept, row = min(cropped, key=lambda one: one[0])
        lines.append(
            f"{len(cropped)} of {total} pictures lose more than {1 - _CROPPED:.0%} to the crop, "
            f"most of all {row.where} {1 - kept:.0%}"
        )
    if transparent := [facts for _, facts in pictures if facts.transparent]:
        plain = sum(facts.one_colour for facts in transparent)
        lines.append(
            f"{len(transparent)} of {total} pictures are transparent and lie over white; {plain} "
            "of them become nearly one colour"
        )
    opaque = [row for row, facts in pictures if facts.one_colour and not facts.transparent]
    if opaque:
        lines.append(
            f"{len(opaque)} of {total} pictures are nearly one colour, e.g. {opaque[0].where}"
        )
    profiles = Counter(facts.profile for _, facts in pictures)
    if converted := profiles["converted"]:
        lines.append(f"{converted} of {total} pictures: colour profile converted to sRGB")
    if unfit := profiles["unfit"]:
        lines.append(
            f"{unfit} of {total} pictures: colour profile broken or of other pixels, ignored"
        )
    return lines


def _copies(pictures: Sequence[tuple[SourceRow, PictureFacts]]) -> list[str]:
    told = [(row, facts.print) for row, facts in pictures if not facts.one_colour]
    groups = near_copies([each for _, each in told])
    if not groups:
        return []
    first, second = (told[at][0].where for at in groups[0][:2])
    extra = sum(len(group) - 1 for group in groups)
    return [f"{extra} of {len(pictures)} pictures repeat another, e.g. {second} is {first}"]


def _files(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
