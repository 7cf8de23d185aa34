"""Small sources for the tests of this folder."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dopsd.data.manifest import CaptionSet, Manifest, PrepareSettings, RowGroup, Texts
from dopsd.data.prepare.shards import write_shard
from dopsd.data.sources.rows import ByteRange, SourceRow

SMALL = {"pixel_area": 1024, "bucket_multiple": 4}
"""Settings under which a 32x32 picture is a bucket of its own."""


def picture(number: int, width: int = 32, height: int = 32) -> Image.Image:
    """RGB noise, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def write_folder(
    folder: Path, count: int, sizes: tuple[tuple[int, int], ...] = ((32, 32),)
) -> Path:
    """``count`` pictures with captions; the sizes take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number, *sizes[number % len(sizes)]).save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(f"picture {number}")
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any] | str]) -> Path:
    """One line per row; texts are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_shards(folder: Path, samples: dict[str, str]) -> Manifest:
    """Shards of one file as preparing would leave them: of each concept one sample a letter, `p` a
    picture of 32x32, `t` texts alone, with the captions ``short`` and ``detailed``."""
    texts = {"short": "a [V]", "detailed": "a [V] in the rain at night"}
    folder.mkdir(parents=True)
    picture(0).save(folder / "source.png")
    source = ByteRange(str(folder / "source.png"))
    rows = [
        SourceRow(
            f"rows:{concept}{number}",
            f"{concept}{number}",
            source if kind == "p" else None,
            concept,
            captions=texts,
        )
        for concept, kinds in samples.items()
        for number, kind in enumerate(kinds)
    ]
    shard = folder / "shard-00000.parquet"
    write_shard(str(shard), [("32x32", [row]) for row in rows])
    groups = tuple(
        RowGroup(
            file=shard.name,
            row_group=number,
            bucket="32x32",
            rows=1,
            concepts=((row.concept or "", 1),),
        )
        for number, row in enumerate(rows)
    )
    return Manifest(
        source="rows",
        settings=PrepareSettings(**SMALL, drawn_size="32x32"),
        seen=len(rows),
        samples=len(rows),
        buckets={"32x32": len(rows)},
        concepts={concept: len(kinds) for concept, kinds in samples.items()},
        caption_sets=(CaptionSet(keys=tuple(sorted(texts)), samples=len(rows)),),
        references={"0": len(rows)},
        without_picture={
            concept: Texts(samples=kinds.count("t"), first=f"rows:{concept}{kinds.index('t')}")
            for concept, kinds in samples.items()
            if "t" in kinds
        },
        fingerprint="f",
        row_groups=groups,
        files={shard.name: shard.stat().st_size},
        quarantined=(),
        notes=(),
    )
