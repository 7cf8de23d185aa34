"""How a source is read: the part of the `data` section that decides what its samples are."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from dopsd.config.data import CAPTION_FILES, CaptionFile


class ReadSettings(BaseModel):
    """Field names as in the ``data`` config section, which describes them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: dict[str, str] = {}
    caption_files: tuple[CaptionFile, ...] = CAPTION_FILES
    caption_lines: Literal["paragraph", "captions"] = "paragraph"
    caption_encoding: str = "utf-8"
    follow_links: bool = False
    folder_repeats: bool = True
    masks: bool = True
    drawn_size: str | None = None

    @property
    def texts(self) -> bool:
        """Whether a sample may be texts alone."""
        return self.drawn_size is not None
