"""The section `data` of the run config."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from dopsd import shown
from dopsd.config.base import Fraction, NonNegative, Positive, SamplerSteps, Section, Weight, Whole

PRIOR = "prior"
"""Concept of the base's own samples, and their folder inside the shards."""

MAX_SIDE = 8192
MAX_PIXELS = MAX_SIDE**2
"""Of a prepared image: no base draws larger ones."""

CaptionFile = Literal["txt", "caption", "json"]
CAPTION_FILES: tuple[CaptionFile, ...] = ("txt", "caption", "json")
"""Suffixes of the files with captions beside pictures, the first that is there counts."""

Column = Literal[
    "image", "caption", "captions", "text", "prompt", "id", "concept", "references", "mask"
]
"""Fields of a sample (docs/data.md)."""


def _size(text: str) -> str:
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if not match or max(int(match[1]), int(match[2])) > MAX_SIDE:
        raise PydanticCustomError(
            "size", f"a size, WIDTHxHEIGHT in pixels, at most {MAX_SIDE} a side, such as 1024x1024"
        )
    return text


class PriorSection(Section):
    """Prior preservation: the base's own samples, drawn before training, train beside the data."""

    prompts: str | None = Field(
        None,
        description="File of prompts (.txt, one a line, or .jsonl) that the base draws and that "
        "then train beside the data, so that old knowledge stays. Default: no such samples.",
    )
    count: Positive = Field(
        100, description="Samples drawn; the prompts in order, again under other noise if fewer."
    )
    steps: SamplerSteps | None = Field(
        None, description="Sampler steps. Default: preview.steps, or method.steps."
    )
    weight: Weight = Field(1.0, description="Times per epoch that each of them comes.")
    share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Of all draws, how many are theirs (0.5: every other), in place of `weight`, "
        "whatever number of images they train beside.",
    )

    @model_validator(mode="after")
    def _weight_or_share(self) -> PriorSection:
        if self.share is not None and self.weight != 1:
            raise ValueError(
                f"data.prior.share: {self.share} beside data.prior.weight: {self.weight:g}, "
                "allowed: one of them"
            )
        return self


class PreservationSection(Section):
    """Differential output preservation: what a class word stood for is kept while an instance of
    it is learned."""

    class_word: str | dict[str, str] | None = Field(
        None,
        description="What the concept is one of, e.g. `dog`; or of each concept, e.g. {rex: dog, "
        "tom: cat}. Each sample whose caption has `data.token` then also trains with this word in "
        "the token's place, towards what the base without any adapter predicts there. Twice the "
        "work of a step. Default: nothing is preserved.",
    )
    weight: float = Field(
        1.0, gt=0, le=1000, description="Of that loss, beside 1 for the concept's own."
    )

    @field_validator("class_word")
    @classmethod
    def _is_a_word(cls, given: str | dict[str, str] | None) -> str | dict[str, str] | None:
        if given == {}:
            raise ValueError("data.preservation.class_word: {}, allowed: a word for each concept")
        words = given.values() if isinstance(given, dict) else [given]
        if blank := [word for word in words if word is not None and word != (word.strip() or None)]:
            raise ValueError(
                f"data.preservation.class_word: {shown.value(blank[0])}, allowed: a word, without "
                "spaces around it"
            )
        return given

    @model_validator(mode="after")
    def _weight_of_something(self) -> PreservationSection:
        if self.class_word is None and self.weight != 1:
            raise ValueError(
                f"data.preservation.weight: {self.weight:g} without data.preservation.class_word, "
                "allowed: with it (nothing is preserved otherwise)"
            )
        return self

    @property
    def concepts(self) -> tuple[str, ...]:
        """Those that have a class word of their own."""
        return tuple(self.class_word) if isinstance(self.class_word, dict) else ()

    @property
    def words(self) -> tuple[str, ...]:
        """Every class word; none where nothing is preserved."""
        if self.class_word is None:
            return ()
        given = self.class_word
        return tuple(given.values()) if isinstance(given, dict) else (given,)


class DataSection(Section):
    """Sources, shards, and how often what is trained on."""

    source: str | None = Field(
        None,
        description="Folder of pictures with captions, of tables or of tars, a list (.jsonl, "
        ".csv), a table (.parquet, .arrow), a .tar, `shapes:CONCEPT` or `shapes:sprites#SEED`; "
        "prepared into `shards` when those do not exist yet.",
    )
    columns: dict[Column, str] = Field(
        default_factory=dict,
        description="What fields are called in lists and tables, e.g. {image: jpg, caption: "
        "long_text}. Default: their own names, or usual others, which are told of.",
    )
    caption_files: list[CaptionFile] = Field(
        default_factory=lambda: list(CAPTION_FILES),
        min_length=1,
        description="Suffixes of the files with captions beside pictures; of several beside one "
        "picture the first in this order counts.",
    )
    caption_lines: Literal["paragraph", "captions"] = Field(
        "paragraph",
        description="What the lines of a caption file are: one `paragraph`, or `captions`, of "
        "which one is drawn per sample and epoch (under the keys caption, caption_2, ...).",
    )
    caption_encoding: str = Field(
        "utf-8",
        description="Encoding of the captions and lists that are not UTF-8, e.g. cp1252, utf-16, "
        "gb18030.",
    )
    follow_links: bool = Field(
        False,
        description="Follow links in a folder, wherever they lead; otherwise those that leave it, "
        "and links to folders, are named and not followed.",
    )
    folder_repeats: bool = Field(
        True,
        description="Read kohya's folder names: `10_sks animal` is the concept `sks animal`, 10 "
        "times per epoch (data.concept_weights goes before).",
    )
    token: str = Field(
        "[V]",
        min_length=1,
        description="The word that captions share for what is new; preparing counts those without.",
    )
    masks: bool = Field(
        True,
        description="Heed the masks of samples (`NAME.mask.png` beside `NAME.png`, or `mask` in "
        "lists and tables): white counts in the loss, black does not, gray in part. Without, "
        "preparing leaves them unread.",
    )
    min_side: NonNegative = Field(
        0, le=MAX_SIDE, description="Pictures with a shorter side than this are quarantined."
    )
    max_enlarge: float = Field(
        4.0,
        gt=0.0,
        le=MAX_SIDE,
        description="Pictures that would be enlarged by more than this factor a side are "
        "quarantined; those that are enlarged by less are counted.",
    )
    drawn_size: Annotated[str, AfterValidator(_size)] | None = Field(
        None,
        description="WIDTHxHEIGHT, e.g. 1024x1024, in which samples without a picture are drawn: "
        "rows of lists and tables that hold two captions or more and no image, for `context.name: "
        "enhanced_prompt`. Their bucket is that of a picture of this size. Default: such rows are "
        "quarantined.",
    )
    shards: str | None = Field(
        None, description="Folder of prepared shards. Default: `shards` in the run folder."
    )
    caption_keys: list[str] = Field(
        default_factory=list,
        description="Captions to draw from, per sample and epoch. Empty: every key of a sample.",
    )
    caption_dropout: Fraction = Field(
        0.0, description="Share of draws that train with an empty prompt, for both roles."
    )
    concept_weights: dict[str, Weight] = Field(
        default_factory=dict,
        description="Times per epoch that each sample of a concept comes, e.g. {cat: 3, dog: "
        "0.5}; 1 for the others, 0 leaves a concept out.",
    )
    balance: Literal["samples", "concepts"] = Field(
        "samples",
        description="What comes about equally often in an epoch: every sample, or every concept, "
        "however few samples it has (then repeats in folder names do not count, and "
        "data.concept_weights says how often each concept comes).",
    )
    concepts: list[str] = Field(
        default_factory=list,
        description="Train on these concepts alone; of one of them each step holds what it would "
        "hold if the data were that concept. Empty: on all.",
    )
    prior: PriorSection = Field(default_factory=PriorSection)
    preservation: PreservationSection = Field(default_factory=PreservationSection)
    context_cache: Literal["off", "auto", "require"] = Field(
        "auto",
        description="Contexts that `dopsd prepare --cache-contexts` left beside the shards. `auto` "
        "reads them where they fit and loads no encoder, else the run encodes while training; "
        "`require` refuses a run that they do not fit; `off` never reads them.",
    )
    pixel_area: Whole | list[Whole] = Field(
        1024 * 1024,
        description="Pixels of a prepared image, about. A list, e.g. [262144, 1048576], gives "
        "buckets of each area: every sample goes into one of those that it fills without being "
        "enlarged, drawn by run.seed and its id (into the smallest when it fills none).",
    )
    bucket_multiple: Positive = Field(
        16, le=MAX_SIDE, description="Width and height of every bucket are multiples of this."
    )
    rows_per_group: Positive = Field(32, description="Rows of a parquet row group.")
    groups_per_shard: Positive = Field(16, description="Row groups of a parquet file.")
    max_bad_fraction: Fraction = Field(
        0.05, description="More quarantined samples than this fraction stop the run."
    )
    shapes_count: Positive = Field(12, description="Images of each concept of a `shapes:` source.")
    shapes_concepts: Positive = Field(
        24,
        le=1_000_000,
        description="Concepts of a `shapes:sprites#SEED` source, named sprite-0000 and so on; more "
        "of them change none.",
    )

    @field_validator("caption_encoding")
    @classmethod
    def _is_an_encoding(cls, name: str) -> str:
        try:
            "".encode(name)
        except (LookupError, ValueError, TypeError):
            raise ValueError(
                f"data.caption_encoding: {name!r}, allowed: an encoding of texts, e.g. cp1252, "
                "utf-16, gb18030, shift_jis"
            ) from None
        return name

    @model_validator(mode="after")
    def _area_or_areas(self) -> DataSection:
        areas = self.pixel_area if isinstance(self.pixel_area, list) else [self.pixel_area]
        if not areas or min(areas) < 1 or max(areas) > MAX_PIXELS:
            raise ValueError(
                f"data.pixel_area: {self.pixel_area}, allowed: a whole number from 1 to "
                f"{MAX_PIXELS}, or a list of such"
            )
        return self

    @model_validator(mode="after")
    def _prior_is_no_concept(self) -> DataSection:
        if PRIOR in self.concepts:
            raise ValueError(
                f"data.concepts: {PRIOR!r} names the base's own samples; allowed: "
                "data.prior.prompts"
            )
        if twice := [name for name, count in Counter(self.concepts).items() if count > 1]:
            raise ValueError(f"data.concepts: {shown.value(twice[0])} is there twice")
        if PRIOR in self.concept_weights:
            raise ValueError(
                f"data.concept_weights: {PRIOR!r} names the base's own samples; allowed: "
                "data.prior.weight"
            )
        return self

    @property
    def named_concepts(self) -> dict[str, Collection[str]]:
        """Concepts that have to be in the data, by the key that names them."""
        return {
            "data.concepts": self.concepts,
            "data.concept_weights": self.concept_weights,
            "data.preservation.class_word": self.preservation.concepts,
        }
