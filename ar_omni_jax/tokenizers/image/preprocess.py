"""Pictures in and out: a file, bytes, a picture of PIL or an array to float32 [size, size, 3] in [-1, 1], and back to
uint8.

Upright by EXIF; of an animation the first picture. Then as Chameleon: alpha blended on white, shorter side resized
with LANCZOS, centre crop, x / 127.5 - 1.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded, in pixels; a larger one is taken for a decompression bomb. The same limit holds
once its shorter side has the wanted size: of a picture one pixel wide a few kilobytes would become gigabytes."""
_BAND = 1 << 20  # pixels blended at a time: in float64 a whole picture would take gigabytes


class ImageError(ValueError):
    """A picture cannot be used; the message says which, why and what to do."""


def _describe(source: object) -> str:
    if isinstance(source, bytes | bytearray | memoryview):
        return f"image of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return f"{source.mode} picture"
    return "image array" if isinstance(source, np.ndarray) else f"image {source}"


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode to RGB; transparency is blended on white in float64 and truncated to uint8."""
    if picture.mode.startswith("I") or picture.mode == "F":  # 16-bit grey: convert() would clip it at 255
        values = np.asarray(picture, np.float64)
        scale = 257.0 if picture.mode.startswith("I;16") or values.max(initial=0.0) > 255 else 1.0
        return Image.fromarray(np.clip(values / scale, 0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in picture.info:
        return picture.convert("RGB")
    rgba = np.asarray(picture.convert("RGBA"))
    rgb = np.empty((*rgba.shape[:2], 3), np.uint8)
    rows = max(1, _BAND // rgba.shape[1])
    for top in range(0, len(rgba), rows):
        band = rgba[top : top + rows].astype(np.float64)
        alpha = band[..., 3:] / 255.0
        rgb[top : top + rows] = ((1 - alpha) * 255.0 + alpha * band[..., :3]).astype(np.uint8)
    return Image.fromarray(rgb)


def _resized(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """(width, height) once the shorter side is `size`."""
    scale = size / min(shape)
    return max(size, round(shape[0] * scale)), max(size, round(shape[1] * scale))


def _check_size(name: str, width: int, height: int, size: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width}x{height} is more than {MAX_PIXELS} pixels; shrink it first")
    wide, high = _resized((width, height), size)
    if wide * high > MAX_PIXELS:
        raise ImageError(
            f"{name}: {width}x{height} is too narrow: with its shorter side at {size} it would have {wide}x{high}, "
            f"more than {MAX_PIXELS} pixels; crop it first"
        )


def preprocess(picture: Image.Image, size: int) -> np.ndarray:
    """Picture of any mode and shape to float32 [size, size, 3] in [-1, 1]."""
    picture = _to_rgb(picture)
    resized = _resized(picture.size, size)
    if resized != picture.size:
        picture = picture.resize(resized, Image.Resampling.LANCZOS)
    left, top = (resized[0] - size) // 2, (resized[1] - size) // 2
    pixels = np.asarray(picture.crop((left, top, left + size, top + size)), np.float32)
    return pixels / np.float32(127.5) - np.float32(1)


def _open(source: str | os.PathLike | bytes, name: str, size: int) -> Image.Image:
    if isinstance(source, str | os.PathLike):
        try:
            data = Path(source).read_bytes()
        except FileNotFoundError:
            raise ImageError(f"{name}: no such file") from None
        except OSError as error:
            raise ImageError(f"{name}: cannot be read ({error.strerror})") from error
    else:
        data = bytes(memoryview(source))  # a number is a TypeError, not that many zeros
    if not data:
        raise ImageError(f"{name}: is empty")
    try:
        picture = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ImageError(f"{name}: is not a picture in a known format (PNG, JPEG, WebP, ...)") from None
    except Exception as error:  # of any kind: damaged AVIF is a RuntimeError, DDS a NotImplementedError, ...
        raise ImageError(f"{name}: cannot be opened ({error})") from error
    return _loaded(picture, name, size)


def _loaded(picture: Image.Image, name: str, size: int) -> Image.Image:
    """An opened picture, decoded and upright."""
    if picture.format == "EPS":  # PIL would have Ghostscript run it
        raise ImageError(f"{name}: is PostScript, a program and no picture; convert it to PNG")
    if 0 in picture.size:
        raise ImageError(f"{name}: has no pixels")
    _check_size(name, picture.width, picture.height, size)
    try:
        picture.load()
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ... on broken data
        raise ImageError(f"{name}: is truncated or damaged ({error})") from error
    return _upright(picture)


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as EXIF says that the camera was held; as it is where that cannot be read."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # of any kind, as decoders
        return picture


def _from_array(array: np.ndarray, size: int) -> Image.Image:
    if array.dtype != np.uint8:
        raise ImageError(f"image array: dtype must be uint8 (0..255), got {array.dtype}")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or 0 in array.shape:
        raise ImageError(f"image array: shape must be [H, W], [H, W, 3] or [H, W, 4], got {list(array.shape)}")
    _check_size("image array", array.shape[1], array.shape[0], size)
    return Image.fromarray(array)


def read_image(source: str | os.PathLike | bytes | Image.Image | np.ndarray, size: int) -> np.ndarray:
    """Reads a path, an encoded file's bytes, a picture of PIL, or a uint8 array [H, W(, 1 | 3 | 4)].

    Returns float32 [size, size, 3] in [-1, 1], RGB. Raises ImageError (a ValueError) when the source is
    missing, truncated, not a picture, or larger than MAX_PIXELS; TypeError when it is none of the four.
    """
    if isinstance(source, Image.Image):
        return preprocess(_loaded(source, _describe(source), size), size)
    if isinstance(source, np.ndarray):
        return preprocess(_from_array(source, size), size)
    return preprocess(_open(source, _describe(source), size), size)


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Float pixels in [-1, 1] (clamped) to uint8 0..255, rounded; any shape."""
    clamped = np.clip(np.asarray(pixels, np.float32), -1, 1)
    return np.round((clamped + 1) * np.float32(127.5)).astype(np.uint8)


def encode_png(pixels_HWC: np.ndarray) -> bytes:
    """uint8 [H, W, 3] to the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, format="PNG")
    return buffer.getvalue()
