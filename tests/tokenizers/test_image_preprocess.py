"""Pictures in and out: equality with the golden, and what happens to bad files."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from ar_omni_jax.tokenizers.image import ImageError, encode_png, preprocess, read_image, to_uint8

GOLDEN = Path(__file__).parents[1] / "golden"


def _png(array):
    return encode_png(np.asarray(array, np.uint8))


def test_equals_the_golden():
    golden = np.load(GOLDEN / "image_preprocess.npz")
    for array, expected in (
        (golden["rgba"], golden["out64_rgba"]),
        (np.ascontiguousarray(golden["rgba"][..., :3]), golden["out64_rgb"]),
    ):
        result = read_image(array, 64)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, atol=1e-6)
        np.testing.assert_array_equal(read_image(_png(array), 64), result)  # the same through a file's bytes


def test_path_bytes_and_array_are_one(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    path = tmp_path / "picture.png"
    path.write_bytes(_png(array))
    expected = read_image(array, 16)
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(read_image(source, 16), expected)


def test_of_right_size_every_pixel_survives():
    array = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    pixels = read_image(array, 16)
    assert pixels.min() >= -1 and pixels.max() <= 1
    np.testing.assert_array_equal(to_uint8(pixels), array)


def test_crop_is_central():
    array = np.zeros((16, 48, 3), np.uint8)
    array[:, 16:32] = 255
    assert to_uint8(read_image(array, 16)).min() == 255


def test_output_is_clamped_and_rounded():
    values = np.array([-3, -1, 0.5 / 127.5 - 1 + 0.002, 0, 1, 7], np.float32)
    np.testing.assert_array_equal(to_uint8(values), [0, 0, 1, 128, 255, 255])


def test_modes():
    grey = np.full((8, 8), 51, np.uint8)
    expected = np.full((8, 8, 3), 51)
    np.testing.assert_array_equal(to_uint8(read_image(grey, 8)), expected)
    deep = Image.fromarray(np.full((8, 8), 51 * 257, np.uint16))  # 16-bit grey must not be clipped to white
    np.testing.assert_array_equal(to_uint8(preprocess(deep, 8)), expected)
    palette = Image.fromarray(np.repeat(grey[..., None], 3, -1)).convert("P")
    np.testing.assert_array_equal(to_uint8(preprocess(palette, 8)), expected)
    clear = Image.new("LA", (8, 8), (0, 0))  # fully transparent black is white
    assert to_uint8(preprocess(clear, 8)).min() == 255


def test_a_dark_picture_of_16_bits_stays_dark():
    dark = Image.fromarray(np.full((8, 8), 200, np.uint16))  # less than one step of 8 bits
    assert to_uint8(preprocess(dark, 8)).max() == 0


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, 1), (8, 3)])
def test_pictures_stand_as_the_camera_was_held(format, orientation, turn):
    upright = np.zeros((48, 64, 3), np.uint8)
    upright[:20, :30] = (250, 40, 40)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(np.rot90(upright, turn)).save(buffer, format=format, exif=exif, quality=95)
    read = read_image(buffer.getvalue(), 32)
    assert np.abs(read - read_image(upright, 32)).mean() < 0.05
    if format == "JPEG":  # a tag that cannot be read spoils no picture
        broken = buffer.getvalue().replace(exif.tobytes()[6:], b"\xff" * len(exif.tobytes()[6:]))
        assert broken != buffer.getvalue() and read_image(broken, 32).shape == (32, 32, 3)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_picture_is_taken(format):
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, format=format, save_all=True, append_images=frames[1:], duration=100)
    assert Image.open(io.BytesIO(buffer.getvalue())).n_frames == 2
    assert np.abs(to_uint8(read_image(buffer.getvalue(), 16)).mean((0, 1)) - (255, 0, 0)).max() < 12


def test_ink_and_palettes_with_holes(tmp_path):
    buffer = io.BytesIO()
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(buffer, format="JPEG", quality=95)
    assert np.abs(to_uint8(read_image(buffer.getvalue(), 16)).mean((0, 1)) - (255, 0, 0)).max() < 12
    clear = Image.new("P", (16, 16), 0)
    clear.putpalette([0, 0, 0, 255, 0, 0])
    clear.save(tmp_path / "p.png", transparency=0)
    assert to_uint8(read_image(tmp_path / "p.png", 16)).min() == 255


def test_postscript_is_not_run(monkeypatch):
    import PIL.EpsImagePlugin

    monkeypatch.setattr(PIL.EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program was run"))
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ImageError, match="is PostScript"):
        read_image(data, 16)


def test_bad_files_are_named(tmp_path):
    whole = _png(np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8))
    cut, text, empty = tmp_path / "cut.png", tmp_path / "text.png", tmp_path / "empty.png"
    cut.write_bytes(whole[: len(whole) // 2])
    text.write_text("not a picture")
    empty.touch()
    for path, message in (
        (tmp_path / "none.png", "none.png: no such file"),
        (cut, "cut.png: is truncated or damaged"),
        (text, "text.png: is not a picture"),
        (empty, "empty.png: is empty"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(ImageError, match=message):
            read_image(path, 64)
    with pytest.raises(ImageError, match="is truncated or damaged"):
        read_image(whole[:200], 64)


@pytest.mark.parametrize("format", ["DDS", "AVIF"])
def test_whatever_a_decoder_says_of_a_damaged_header_the_picture_is_named(format):
    """Pillow tells damage of AVIF, which the web has under names of JPEG, by RuntimeError, of DDS by another one."""
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 99, 199)).save(buffer, format)
    data = bytearray(buffer.getvalue())
    if format == "DDS":
        data[80:84] = bytes(4)  # flags of the pixels' format
    else:
        data = data.replace(b"iloc", b"xxxx")  # where the picture lies in the file
    with pytest.raises(ImageError, match=f"image of {len(data)} bytes: cannot be opened"):
        read_image(bytes(data), 8)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_refused_before_decoding():
    buffer = io.BytesIO()
    Image.new("1", (20000, 5000)).save(buffer, format="PNG")
    assert len(buffer.getvalue()) < 100_000
    with pytest.raises(ImageError, match="20000x5000 is more than"):
        read_image(buffer.getvalue(), 64)


def test_arrays_and_narrow_pictures_have_the_same_limit():
    """An array is refused before anything is copied (this one owns no memory); a thin line before it is enlarged."""
    huge = np.broadcast_to(np.uint8(7), (20000, 5000, 3))
    with pytest.raises(ImageError, match="image array: 5000x20000 is more than 64000000 pixels; shrink it"):
        read_image(huge, 64)
    with pytest.raises(ImageError, match="1x20000 is too narrow: .* 64x1280000, more than"):
        read_image(np.zeros((20000, 1), np.uint8), 64)
    with pytest.raises(ImageError, match="20000x1 is too narrow"):
        read_image(_png(np.zeros((1, 20000, 3))), 64)
    assert read_image(np.zeros((15000, 1), np.uint8), 64).shape == (64, 64, 3)


def test_transparency_is_the_same_in_bands(monkeypatch):
    """A tall picture is blended some rows at a time."""
    array = np.random.default_rng(3).integers(0, 256, (50, 7, 4), np.uint8)
    whole = read_image(array, 7)
    monkeypatch.setattr(sys.modules[preprocess.__module__], "_BAND", 20)
    np.testing.assert_array_equal(read_image(array, 7), whole)


@pytest.mark.parametrize("source", [10**12, 3.5, None, [1, 2]])
def test_what_is_no_picture_at_all_is_a_type_error(source):
    """Above all a number, which bytes() takes for a length."""
    with pytest.raises(TypeError):
        read_image(source, 8)


@pytest.mark.parametrize(("shape", "dtype"), [((4, 4, 3), "f4"), ((4, 4, 2), "u1"), ((0, 4), "u1")])
def test_bad_arrays_are_refused(shape, dtype):
    with pytest.raises(ImageError, match="image array"):
        read_image(np.zeros(shape, dtype), 4)


def _file(picture: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "format"),
    [("P", "PNG"), ("CMYK", "TIFF"), ("L", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG")],
)
def test_a_picture_of_pil_is_what_its_file_is(mode, format):
    """Its array would not do: that of a palette holds places in the palette, that of CMYK looks like RGBA."""
    pixels = np.random.default_rng(4).integers(0, 256, (40, 30, 4), np.uint8)
    picture = Image.fromarray(pixels).convert("RGB" if mode in ("P", "CMYK") else "RGBA")
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    picture = deep if mode == "I;16" else picture.convert(mode)
    assert picture.mode == mode
    np.testing.assert_array_equal(read_image(picture, 16), read_image(_file(picture, format), 16))


def test_a_picture_of_pil_is_turned_upright_and_held_to_the_same_limits():
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(5).integers(0, 256, (48, 64, 3), np.uint8)
    turned = _file(Image.fromarray(pixels), "PNG", exif=exif)
    np.testing.assert_array_equal(read_image(Image.open(io.BytesIO(turned)), 32), read_image(turned, 32))
    for picture, message in (
        (Image.new("1", (20000, 5000)), "1 picture: 20000x5000 is more than"),
        (Image.new("RGB", (0, 5)), "RGB picture: has no pixels"),
        (Image.open(io.BytesIO(turned[: len(turned) // 2])), "is truncated or damaged"),
    ):
        with pytest.raises(ImageError, match=message):
            read_image(picture, 64)
