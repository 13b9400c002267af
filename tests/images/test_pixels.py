import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from images.pixels import in_colours, open_picture, to_pixels


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_pictures_of_the_requested_size_are_unchanged(rng, mode, channels):
    """Catches a filter that blurs pictures that already have the requested size."""
    pixels = rng.integers(0, 256, (7, 7, channels), np.uint8)
    picture = Image.fromarray(pixels.squeeze(), mode)
    np.testing.assert_array_equal(to_pixels(picture, (7, 7, channels)), pixels)


@pytest.mark.parametrize("size", [32, 64])
def test_celeba_is_cropped_and_resized_as_in_score_sde(size):
    """Catches a crop off the centre and a resize without antialiasing.

    TensorFlow rounds once, Pillow twice, so the results differ by up to one level.
    """
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (218, 178, 3), np.uint8))
    expected = np.load(Path(__file__).parents[1] / "data/tf_resize.npz")[f"size_{size}"]
    found = to_pixels(picture, (size, size, 3), crop=140)
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("size", [(30, 20), (20, 30), (20, 20), (21, 20)])
def test_the_crop_is_centred(size):
    """Catches width and height swapped, and a crop at the corner."""
    picture = Image.new("L", size, 0)
    left = (size[0] - 20) // 2
    top = (size[1] - 20) // 2
    picture.paste(255, (left, top, left + 20, top + 20))
    assert to_pixels(picture, (10, 10, 1)).min() == 255


def test_small_pictures_are_enlarged():
    """Catches a picture smaller than the requested size that is padded or refused."""
    picture = Image.fromarray(np.array([[0, 255], [0, 255]], np.uint8))
    assert to_pixels(picture, (4, 4, 1))[:, :, 0].tolist() == [[0, 64, 191, 255]] * 4


def test_crop_larger_than_the_picture_is_refused():
    """Catches a crop that reaches beyond the edges."""
    with pytest.raises(ValueError, match="100x139 pixels, smaller than the crop of 140x140"):
        to_pixels(Image.new("RGB", (100, 139)), (32, 32, 3), crop=140)


def uniform(mode, value):
    return Image.new(mode, (2, 2), value)


def palette(transparent=False):
    picture = uniform("P", 1)
    picture.putpalette([0, 0, 0, 200, 100, 50])
    if transparent:
        picture.info["transparency"] = 1
    return picture


def sixteen_bits(level):
    return Image.fromarray(np.full((2, 2), level, np.uint16))


@pytest.mark.parametrize(
    ("picture", "rgb", "grey"),
    [
        (uniform("L", 90), [90, 90, 90], 90),
        (uniform("1", 1), [255, 255, 255], 255),
        (uniform("RGB", (255, 0, 0)), [255, 0, 0], 76),  # ITU-R 601: 0.299
        (uniform("RGB", (0, 255, 0)), [0, 255, 0], 150),
        (uniform("RGBA", (255, 0, 0, 0)), [255, 255, 255], 255),
        (uniform("RGBA", (255, 0, 0, 255)), [255, 0, 0], 76),
        (uniform("RGBA", (0, 0, 0, 51)), [204, 204, 204], 204),
        (uniform("LA", (0, 0)), [255, 255, 255], 255),
        (uniform("LA", (90, 255)), [90, 90, 90], 90),
        (palette(), [200, 100, 50], 124),
        (palette(transparent=True), [255, 255, 255], 255),
        (sixteen_bits(65535), [255, 255, 255], 255),
        (sixteen_bits(257 * 90), [90, 90, 90], 90),
        (sixteen_bits(300), [1, 1, 1], 1),
        (uniform("CMYK", (0, 0, 0, 0)), [255, 255, 255], 255),
        (uniform("CMYK", (255, 255, 0, 0)), [0, 0, 255], 29),
    ],
)
@pytest.mark.parametrize("saved", [False, True])
def test_colours(picture, rgb, grey, saved):
    """Catches colours hidden by transparency, palette numbers read as grey levels, and 16 bits clipped at 255."""
    if saved:
        file = io.BytesIO()
        picture.save(file, "JPEG" if picture.mode == "CMYK" else "PNG")
        picture = open_picture(file)
    tolerance = 2 if picture.format == "JPEG" else 0
    np.testing.assert_allclose(to_pixels(picture, (2, 2, 3))[0, 0], rgb, atol=tolerance)
    np.testing.assert_allclose(to_pixels(picture, (2, 2, 1))[0, 0], [grey], atol=tolerance)


def test_exif_orientation_is_applied():
    """Catches photographs that stay rotated. With EXIF orientation 6, the right side of the stored pixels is below."""
    picture = Image.fromarray(np.array([[10, 20], [30, 40]], np.uint8))
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(file, "PNG", exif=exif)
    assert to_pixels(open_picture(file), (2, 2, 1))[..., 0].tolist() == [[30, 10], [40, 20]]


def test_jpeg_with_a_preview_is_read():
    """Catches a JPEG with an embedded preview (MPO, written by many cameras) that is refused as an animation."""
    file = io.BytesIO()
    uniform("RGB", (9, 9, 9)).save(file, "MPO", save_all=True, append_images=[uniform("RGB", (200, 0, 0))])
    picture = open_picture(file)
    assert picture.n_frames == 2
    assert to_pixels(picture, (2, 2, 3)).max() < 20


def png(depth, colour_type, samples, transparent):
    """Makes a PNG of one row and two pixels, in which the colour `transparent` is transparent."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, depth, colour_type, 0, 0, 0)
    colour = struct.pack(f">{len(transparent)}H", *transparent)
    body = [(b"IHDR", header), (b"tRNS", colour), (b"IDAT", zlib.compress(b"\0" + samples)), (b"IEND", b"")]
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in body))


@pytest.mark.parametrize(
    ("depth", "colour_type", "samples", "transparent", "levels"),
    [
        (1, 0, b"\x40", (0,), [255, 255]),
        (2, 0, b"\x60", (1,), [255, 170]),
        (4, 0, b"\x3f", (3,), [255, 255]),
        (4, 0, b"\x3c", (15,), [51, 204]),
        (8, 0, b"\x03\x09", (3,), [255, 9]),
        (16, 0, struct.pack(">2H", 0, 300), (0,), [255, 1]),
        (16, 0, struct.pack(">2H", 0, 300), (300,), [0, 255]),
        (8, 2, bytes([1, 1, 1, 9, 9, 9]), (1, 1, 1), [255, 9]),
        (16, 2, struct.pack(">6H", 300, 300, 300, 2570, 2570, 2570), (300, 300, 300), [255, 10]),
    ],
)
def test_one_transparent_colour_becomes_white(depth, colour_type, samples, transparent, levels):
    """Catches transparent pixels that stay black, because their colour is stored with another bit depth."""
    picture = in_colours(open_picture(png(depth, colour_type, samples, transparent)), 1)
    assert np.asarray(picture).ravel().tolist() == levels


def saved(picture, form, **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file


def test_16_bits_of_a_ppm_are_scaled():
    """Catches levels clipped at 255, as by Pillow's conversion."""
    file = io.BytesIO(b"P5 2 2 65535\n" + struct.pack(">4H", *[257 * 90] * 4))
    assert (to_pixels(open_picture(file), (2, 2, 1)) == 90).all()


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (saved(Image.new("F", (2, 2), 0.5), "TIFF"), "levels of 32 bits"),
        (saved(Image.new("I", (2, 2), 70_000), "TIFF"), "levels of 32 bits"),
        (saved(Image.new("RGB", (2, 2)), "TIFF", tiffinfo={254: 1}), "preview of a raw photograph"),
    ],
)
def test_pictures_whose_levels_are_not_known_are_refused(file, reason):
    """Catches measurements that are clipped to black and white, and a thumbnail read instead of a raw photograph."""
    with pytest.raises(ValueError, match=reason):
        to_pixels(open_picture(file), (2, 2, 1))
