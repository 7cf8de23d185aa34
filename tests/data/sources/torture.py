"""Sources of bad and odd samples, over a thousand, each with what must become of it.

One function per kind of source. The seed decides pixels and which bytes are spoilt.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dopsd.data.sources.fields import MAX_CAPTION_BYTES, MAX_NAME
from tests.data.sources.torture_kinds import TEXTS, Expected, noise, pictures, saved

FINE = Expected()


@dataclass
class Torture:
    """A source and, by the place that the manifest names, what must become of each input."""

    source: Path
    by_place: dict[str, Expected] = field(default_factory=dict)
    corners: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """By sample id: the colour of the upper left of an accepted picture."""

    def picture(self, sample_id: str, place: str, expected: Expected) -> None:
        self.by_place[place] = expected
        if expected.corner is not None and not expected.reason:
            self.corners[sample_id] = expected.corner


def folder(root: Path, seed: int = 0, rounds: int = 8) -> Torture:
    """A folder of image files with .txt captions."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True)
    torture = Torture(root)

    def put(name: str, image: bytes, caption: bytes | None, expected: Expected) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image)
        if caption is not None:
            (root / name).with_suffix(".txt").write_bytes(caption)
        torture.by_place[name] = expected

    for each in pictures(rng, rounds):
        name = f"kinds/{each.name}{each.suffix}"
        put(name, each.data, b"x", each.expected)
        torture.picture(f"kinds/{each.name}", name, each.expected)
    for name, (text, expected) in TEXTS.items():
        put(f"texts/{name}.png", saved(noise(rng), "PNG"), text.encode(), expected)
    good = saved(noise(rng), "PNG")
    put("latin.png", good, b"\xe9t\xe9", Expected("caption is not UTF-8"))
    put("utf16.png", good, "été".encode("utf-16"), Expected("caption is not UTF-8"))
    put("bom.png", good, b"\xef\xbb\xbfx", Expected(caption="x"))
    put("half.png", good, b"\xed\xa0\x80", Expected("caption is not UTF-8"))
    put("silent.png", good, None, Expected("missing caption: no silent.txt"))
    put("huge.png", good, b"z" * (MAX_CAPTION_BYTES + 1), Expected("caption too long"))
    put("strange '\"<b> name.png", good, b"x", FINE)
    put("new\nline.png", good, b"x", Expected("file name holds U+000A"))
    (root / "alone.txt").write_text("x")
    torture.by_place["alone.txt"] = Expected("missing image: no picture beside alone.txt")
    put("twin.png", good, b"x", Expected("duplicate id 'twin': first in twin.jpg"))
    put("twin.jpg", good, b"x", FINE)
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(good)
    (outside / "secret.txt").write_text("the secret")
    for name, target in (("link", outside / "secret.png"), ("inner", root / "bom.png")):
        (root / f"{name}.png").symlink_to(target)
        (root / f"{name}.txt").write_text("x")
    torture.by_place |= {"link.png": Expected("link leaves the source's folder"), "inner.png": FINE}
    put("told.png", good, None, Expected("caption: link leaves the source's folder"))
    (root / "told.txt").symlink_to(outside / "secret.txt")
    put("lost.png", good, b"x", Expected("link leads nowhere"))
    (root / "lost.png").unlink()
    (root / "lost.png").symlink_to(root / "nothing.png")
    (root / "circle").symlink_to(root, target_is_directory=True)
    put("pipe.png", good, b"x", Expected("not a regular file"))
    (root / "pipe.png").unlink()
    os.mkfifo(root / "pipe.png")
    with open(os.fsencode(root) + b"/\xff\xfe.png", "wb") as file:
        file.write(good)
    torture.by_place["\\udcff\\udcfe.png"] = Expected("file name is not Unicode")
    (root / "notes.csv").write_text("left aside")
    return torture


def jsonl(root: Path, seed: int = 1, rounds: int = 4) -> Torture:
    """A .jsonl file beside the pictures that it names."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    torture = Torture(root / "set.jsonl")
    lines: list[bytes] = []

    def put(line: Any, expected: Expected) -> None:
        lines.append(line if isinstance(line, bytes) else json.dumps(line).encode())
        torture.by_place[f"set.jsonl:{len(lines)}"] = expected

    for each in pictures(rng, rounds):
        (root / "images" / each.name).write_bytes(each.data)
        put({"image": f"images/{each.name}", "caption": "x"}, each.expected)
        torture.picture(f"images/{each.name}", f"set.jsonl:{len(lines)}", each.expected)
    (root / "good").write_bytes(saved(noise(rng), "PNG"))
    (root.parent / "beside.png").write_bytes(saved(noise(rng), "PNG"))

    def row(**values: Any) -> dict[str, Any]:
        return {"image": "good", "caption": "x", "id": f"row {len(lines)}", **values}

    for text, expected in TEXTS.values():
        put(row(caption=text), expected)
        # Beside a good caption an empty one is left out.
        beside = Expected() if text.isspace() else Expected(expected.reason)
        put(row(captions={"short": "fine", "long": text}), beside)
    wrong: tuple[Any, ...] = (3, 1.5, True, [], {}, ["x"], {"x": 1}, [None])
    for value in wrong:
        put(row(caption=value), Expected("caption 'caption'"))
        put(row(captions={"short": value}), Expected("caption 'short'"))
        put(row(image=value), Expected("image: "))
        put(row(concept=value), Expected("concept: "))
    for value in (1.5, True, [], {}, [1]):
        put(row(id=value), Expected("id: "))
    for value in ("x", {"a": 1}, 3, [1], [{}]):
        put(row(references=value), Expected("references: "))
    put(row(references=["good"] * 9), Expected("too many references"))
    put(row(references=["gone"]), Expected("bad reference: gone: missing image"))
    put(row(references=["good", "images/nil-00"]), Expected("bad reference: nil-00: zero bytes"))
    put(row(captions={f"{n}": "x" for n in range(100)}), Expected("too many captions"))
    put(row(captions={"": "x"}), FINE)
    put(row(captions={"a\nb": "x"}), Expected("caption key holds U+000A"))
    half: tuple[tuple[str, str], ...] = (
        ("caption", "caption is not Unicode"),
        ("id", "id is not Unicode"),
        ("concept", "concept is not Unicode"),
        ("image", "image: "),
    )
    for name, reason in half:
        put(row(**{name: "\ud800"}), Expected(reason))
    put(row(captions={"\udfff": "x"}), Expected("caption key is not Unicode"))
    put({**row(), "\ud800": "an unknown field"}, FINE)
    for name in ("id", "concept"):
        put(row(**{name: "a\0b"}), Expected(f"{name} holds U+0000"))
        put(row(**{name: "n" * (MAX_NAME + 1)}), Expected(f"{name} too long"))
    put(row(image="good\0.png"), Expected("image: "))
    put(row(image="n" * 300), Expected("unreadable image"))
    put(row(image=""), Expected("missing image"))
    put(row(image=None), Expected("missing image"))
    put(row(caption=None), Expected("missing caption"))
    put(row(image="gone.png"), Expected("missing image: no such file"))
    put(row(image="images"), Expected("unreadable image: not a regular file"))
    put(row(image="/dev/zero"), Expected("unreadable image: not a regular file"))
    put(row(image="gs://bucket/x.png"), Expected("unreadable image"))
    # A list that somebody wrote may name files anywhere; an id is a text and never a path.
    put(row(image="../beside.png"), FINE)
    put(row(image=str(root / "good")), FINE)
    put(row(id="../../escape"), FINE)
    put(row(id="/etc/passwd"), FINE)
    put(row(id=12), FINE)
    put(row(id="12"), Expected("duplicate id '12'"))
    put(b"{oops", Expected("not JSON"))
    put(b'{"image": "good", "caption": "cut', Expected("not JSON"))
    put(b'{"image": "good", "caption": "\xff"}', Expected("not UTF-8"))
    put(b"[" * 100_000, Expected("not JSON: nested too deeply"))
    put(b'{"id": ' + b"9" * 5000 + b"}", Expected("not JSON"))
    put(b'"' + b"x" * 2**23 + b'"', Expected("line too long"))
    for value in (b"[]", b"3", b"null", b'"text"', b"NaN"):
        put(value, Expected("found "))
    torture.source.write_bytes(b"\n".join(lines) + b"\n")
    return torture


def parquet(root: Path, seed: int = 2, rounds: int = 6) -> Torture:
    """A folder of .parquet files: bad rows in good files, and bad files."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True)
    torture = Torture(root)
    images = list(pictures(rng, rounds))
    table = pa.table(
        {
            "image": [{"bytes": each.data, "path": None} for each in images],
            "text": ["x"] * len(images),
            "id": [each.name for each in images],
        }
    )
    size = 16
    pq.write_table(table, root / "kinds.parquet", row_group_size=size)
    for at, each in enumerate(images):
        place = f"kinds.parquet:{at // size}:{at % size}"
        torture.picture(each.name, place, each.expected)

    good = saved(noise(rng), "PNG")
    texts = list(TEXTS.values()) + [("x", FINE)] * 4
    captions = pa.array([text.encode() for text, _ in texts], pa.binary())
    captions = pa.concat_arrays([captions, pa.array([b"\xff\xfe", b"\xc3", None], pa.binary())])
    table = pa.table({"image": [good] * len(captions), "caption": captions.view(pa.string())})
    pq.write_table(table, root / "texts.parquet")
    bad = [("", Expected("caption: not UTF-8"))] * 2 + [("", Expected("missing caption"))]
    for at, (_, expected) in enumerate(texts + bad):
        torture.by_place[f"texts.parquet:0:{at}"] = expected

    (root.parent / "above.png").write_bytes(good)
    (root / "own.png").write_bytes(good)
    (root / "out.png").symlink_to(root.parent / "above.png")
    leaves = Expected("image path leaves the folder of its file")
    paths = {
        "own.png": FINE,
        "sub/../own.png": leaves,
        "../above.png": leaves,
        str(root / "own.png"): leaves,
        "s3://bucket/x.png": leaves,
        "out.png": leaves,
        "gone.png": Expected("missing image: no such file"),
        "": Expected("missing image"),
        "a\0b": Expected("image: "),
    }
    table = pa.table({"image": list(paths), "caption": ["x"] * len(paths)})
    pq.write_table(table, root / "paths.parquet", row_group_size=4)
    for at, expected in enumerate(paths.values()):
        torture.by_place[f"paths.parquet:{at // 4}:{at % 4}"] = expected

    _wrong_types(root, torture, good)
    _broken_files(root, torture, [saved(noise(rng), "PNG") for _ in range(30)])
    return torture


def _wrong_types(root: Path, torture: Torture, good: bytes) -> None:
    """A column of a type that cannot be: each row says so."""
    times = pa.array([2**62], pa.timestamp("us"))
    columns: dict[str, tuple[dict[str, Any], Expected]] = {
        "number-image": ({"image": [3]}, Expected("image: 3")),
        "list-image": ({"image": [[good]]}, Expected("image: list")),
        "struct-image": ({"image": [{"bytes": None, "path": None}]}, Expected("missing image")),
        "time-image": ({"image": times}, Expected("image: ")),
        "number-caption": ({"caption": [3]}, Expected("caption 'caption': 3")),
        "list-caption": ({"caption": [["x", "y"]]}, Expected("caption 'caption': ['x', 'y']")),
        "bytes-caption": ({"caption": [b"x"]}, Expected("caption 'caption': bytes")),
        "float-id": ({"id": [0.5]}, Expected("id: 0.5")),
        "list-id": ({"id": [["a"]]}, Expected("id: ['a']")),
        "number-concept": ({"concept": [1]}, Expected("concept: 1")),
        "text-references": ({"references": ["x"]}, Expected("references: 'x'")),
        "null-references": ({"references": [[None]]}, Expected("missing image")),
        "null-column": ({"image": pa.nulls(1)}, Expected("missing image")),
    }
    for name, (values, expected) in columns.items():
        table = pa.table({"image": [good], "caption": ["x"]} | values)
        pq.write_table(table, root / f"{name}.parquet")
        torture.by_place[f"{name}.parquet:0:0"] = expected


def _broken_files(root: Path, torture: Torture, images: list[bytes]) -> None:
    """Files that break off, footers and pages that lie."""
    count, half = len(images), len(images) // 2
    table = pa.table({"image": images, "caption": ["x"] * count})
    whole = root / "whole.parquet"
    plain = {"use_dictionary": False, "write_statistics": False, "compression": "NONE"}
    pq.write_table(table, whole, row_group_size=half, write_page_checksum=True, **plain)
    data = whole.read_bytes()
    for at in range(count):
        torture.by_place[f"whole.parquet:{at // half}:{at % half}"] = FINE
    broken = Expected("broken parquet")
    footer = int.from_bytes(data[-8:-4], "little")
    spoilt = {
        "nil": b"",
        "magic": b"PAR1",
        "cut": data[: len(data) // 2],
        "tail": data[:-1],
        "length": data[:-8] + b"\xff\xff\xff\x7fPAR1",
        "zeroed": data[: -8 - footer] + bytes(footer) + data[-8:],
        "no-parquet": b"image,caption\n1.png,x\n",
    }
    for name, content in spoilt.items():
        (root / f"{name}.parquet").write_bytes(content)
        torture.by_place[f"{name}.parquet"] = broken
    for at in range(8, 28, 4):  # a byte of a page, in one row group or the other
        place = data.index(images[at]) + 40
        name = f"page-{at:02}.parquet"
        (root / name).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        for group in range(2):
            if group == at // half:
                where = f"{name}:{group}:0-{half - 1}"
                torture.by_place[where] = Expected("broken parquet", samples=half)
                continue
            for row in range(half):
                torture.by_place[f"{name}:{group}:{row}"] = FINE
    pq.write_table(table.slice(0, 0), root / "empty.parquet")
    torture.by_place["empty.parquet"] = Expected("empty: no rows")
    for column in ("image", "caption"):
        pq.write_table(table.drop_columns([column]), root / f"no-{column}.parquet")
        torture.by_place[f"no-{column}.parquet"] = Expected("missing column", samples=count)
    twice = pa.Table.from_arrays(
        [table["image"]] * 2 + [table["caption"]], ["image"] * 2 + ["text"]
    )
    pq.write_table(twice, root / "twice.parquet")
    torture.by_place["twice.parquet"] = Expected("column 'image' is there twice", samples=count)
    future = table.replace_schema_metadata({"dopsd.format": "dopsd-shards", "dopsd.version": "99"})
    pq.write_table(future, root / "future.parquet")
    torture.by_place["future.parquet"] = Expected("schema version '99'", samples=count)
