from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dopsd.data.pictures.buckets import Bucket, Choice, buckets, fit, nearest, parse_bucket
from tests.data.samples import picture


def test_one_megapixel_gives_the_eleven_shapes_of_the_paper() -> None:
    made = buckets(1024 * 1024, 16)
    assert len(made) == 11
    assert made[0] == (1024, 1024)
    assert {(1248, 832), (720, 1280), (1344, 576), (576, 1344)} <= set(made)


@pytest.mark.parametrize(("area", "multiple"), [(1024, 4), (256 * 256, 16), (512 * 512, 64)])
def test_scaled_buckets_are_multiples_unique_and_about_the_area(area: int, multiple: int) -> None:
    made = buckets(area, multiple)
    assert len(set(made)) == len(made) <= 11
    for bucket in made:
        assert bucket.width % multiple == 0 == bucket.height % multiple
        assert 0.6 < bucket.width * bucket.height / area < 1.4


def test_a_32_pixel_square_is_its_own_bucket() -> None:
    assert nearest(32, 32, buckets(1024, 4)) == (32, 32)


def test_tiny_areas_still_give_one_multiple() -> None:
    assert buckets(16, 16) == (Bucket(16, 16),)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((3000, 2000), (1248, 832)), ((900, 1600), (720, 1280)), ((4000, 1000), (1344, 576))],
)
def test_nearest_by_aspect(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert nearest(*size, buckets(1024 * 1024, 16)) == expected


def test_names_read_back() -> None:
    assert parse_bucket(str(Bucket(40, 24))) == (40, 24)


def test_fit_leaves_a_picture_of_the_right_size_alone() -> None:
    image = picture(0)
    assert np.array_equal(fit(image, Bucket(32, 32)), image)


def test_fit_only_cuts_where_no_scaling_is_needed() -> None:
    image = picture(0, 45, 32)
    assert np.array_equal(fit(image, Bucket(32, 32)), np.asarray(image)[:, 6:38])


def test_fit_covers_and_cuts_the_centre() -> None:
    """Left, middle and right third in different colours: the middle stays."""
    image = Image.new("RGB", (96, 32), "red")
    image.paste((0, 255, 0), (32, 0, 64, 32))
    image.paste((0, 0, 255), (64, 0, 96, 32))
    pixels = np.asarray(fit(image, Bucket(16, 16)))
    assert pixels.shape == (16, 16, 3)
    # Lanczos sees a little beyond the cut, as it does when a whole picture is scaled and cut.
    assert np.array_equal(pixels[:, 4:12], np.broadcast_to([0, 255, 0], (16, 8, 3)))
    assert pixels[..., 1].min() > 230


@pytest.mark.parametrize("size", [(7, 1000), (1000, 7), (1, 1), (33, 31)])
def test_fit_always_gives_the_bucket(size: tuple[int, int]) -> None:
    assert fit(picture(0, *size), Bucket(40, 24)).size == (40, 24)


def test_an_area_is_drawn_by_id_among_those_that_a_picture_fills() -> None:
    choice = Choice.of((1024, 4096), 4, seed=0)
    drawn = [choice.bucket(200, 200, str(key)) for key in range(200)]
    assert drawn == [choice.bucket(200, 200, str(key)) for key in range(200)]
    assert set(drawn) == {(32, 32), (64, 64)} and 60 < drawn.count(Bucket(32, 32)) < 140
    assert drawn != [Choice.of((1024, 4096), 4, 1).bucket(200, 200, str(key)) for key in range(200)]
    # 40 pixels would have to be enlarged to fill 64, and 20 to fill anything.
    for side in (40, 20):
        assert {choice.bucket(side, side, str(key)) for key in range(20)} == {(32, 32)}
    assert Choice.of((4096,), 4, 0).bucket(20, 20, "") == (64, 64)
