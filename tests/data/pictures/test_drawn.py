"""Pictures that dopsd drew are known again until somebody changes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dopsd.data.pictures.drawn import drawn_png, is_drawn
from dopsd.data.pictures.images import decode_png, encode_png
from dopsd.errors import ConfigError
from dopsd.evaluation.generate import check_out


def test_a_drawn_picture_is_known_and_one_that_was_changed_is_not(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 6), "red")
    path = tmp_path / "000.png"
    path.write_bytes(drawn_png(picture))
    assert is_drawn(str(path)) and (decode_png(path.read_bytes()) == [255, 0, 0]).all()
    assert drawn_png(picture) == path.read_bytes()
    with Image.open(path) as drawn:
        drawn.load()
        info, changed = drawn.info, drawn.copy()
    changed.putpixel((1, 1), (0, 0, 0))
    changed.save(path, dopsd=info["dopsd"])
    assert not is_drawn(str(path))
    for payload in (b"", b"no picture", encode_png(picture)):
        path.write_bytes(payload)
        assert not is_drawn(str(path))
    path.unlink()
    (tmp_path / "drawn.png").write_bytes(drawn_png(picture))
    path.symlink_to(tmp_path / "drawn.png")
    assert not is_drawn(str(path))


def test_generate_replaces_its_own_pictures_alone(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    paths = [f"{out}/000.png", f"{out}/001.png"]
    check_out(out, paths)
    Path(out).mkdir()
    (tmp_path / "out" / "holiday.png").write_bytes(b"mine")
    Path(paths[0]).write_bytes(drawn_png(Image.new("RGB", (2, 2))))
    check_out(out, paths)
    Path(paths[1]).write_bytes(b"mine")
    with pytest.raises(ConfigError, match=rf"^--out: {paths[1]} not drawn by dopsd, or changed"):
        check_out(out, paths)
