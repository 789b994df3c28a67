"""Reads a toy-world picture back into a scene, by connected components and palette colours; no model is involved."""

import functools
import itertools

import numpy as np
from scipy import ndimage

from data_pipelines.toyworld.drawing import CELL_CENTERS, IMAGE_SIZE, cell_center, draw
from data_pipelines.toyworld.scene import BACKGROUNDS, COLORS, POSITIONS, SHAPES, SIZES, Scene, SceneObject

# A component must hold a square of 3 by 3 pixels, so that the mixed colours along an edge are no objects.
_CORE = np.ones((3, 3), bool)
_REACH = 5  # pixels around a core in which its object's soft edge may lie
_SHIFTS = range(-2, 3)  # pixels, tried each way when a component is laid on a template
_LOWEST_OVERLAP = 0.5  # intersection over union with the best template; less is no known shape
_NAMES = (*BACKGROUNDS, *COLORS)
_PALETTE = np.array([*BACKGROUNDS.values(), *COLORS.values()], np.float32)  # [names, 3]


def read_scene(pixels: np.ndarray) -> Scene:
    """What a picture shows.

    An object is a connected component of one palette colour. Its shape and size are those of the drawn template that
    it overlaps most (shape None if it overlaps none by half); its position is the grid cell nearest to its middle.
    Unlike a true scene's, objects may share a colour or a cell.

    Args:
        pixels: uint8 [64, 64, 3], sRGB.

    Returns:
        The scene; no objects if there are none to be seen.

    Raises:
        ValueError: for another shape or dtype.
    """
    pixels = np.asarray(pixels)
    if pixels.shape != (IMAGE_SIZE, IMAGE_SIZE, 3) or pixels.dtype != np.uint8:
        raise ValueError(
            f"a toy-world picture is uint8 [{IMAGE_SIZE}, {IMAGE_SIZE}, 3]; got {pixels.dtype} {list(pixels.shape)}"
        )
    image = pixels.astype(np.float32)
    labels = _nearest_names(ndimage.median_filter(image, size=(3, 3, 1)))
    background = int(np.bincount(labels.ravel(), minlength=len(_NAMES))[: len(BACKGROUNDS)].argmax())
    cores, colors = _cores(labels)
    objects = []
    for number, color in enumerate(colors, start=1):
        mask = _object_mask(image, cores, number, _PALETTE[background], _PALETTE[color])
        shape, size = _match(mask)
        objects.append(SceneObject(shape, _NAMES[color], size, _cell(mask)))
    return Scene(tuple(objects), _NAMES[background])


def _nearest_names(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] to the index in `_NAMES` of the nearest palette colour, [H, W]."""
    return np.square(image[:, :, None] - _PALETTE).sum(-1).argmin(-1)


def _cores(labels: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """(core number at each pixel [H, W], 0 for none; palette index of each core). Cores are sure insides of objects."""
    cores = np.zeros(labels.shape, int)
    colors = []
    for color in range(len(BACKGROUNDS), len(_NAMES)):
        opened = ndimage.binary_opening(labels == color, _CORE)
        components, count = ndimage.label(opened)
        cores[opened] = components[opened] + len(colors)
        colors += [color] * count
    return cores, colors


def _object_mask(image, cores, number, background, color) -> np.ndarray:
    """Pixels, bool [H, W], around core `number` that are more of its colour than the background's, and connected."""
    core = cores == number
    axis = color - background
    coverage = (image - background) @ axis / (axis @ axis)
    others = ndimage.binary_dilation((cores > 0) & ~core, iterations=2)
    near = ndimage.binary_dilation(core, iterations=_REACH) & ~others
    components, _ = ndimage.label((near & (coverage > 0.5)) | core)
    return components == components[core][0]


def _middle(mask: np.ndarray) -> tuple[float, float]:
    """(x, y) of the middle of the mask's bounding box, pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2


def _cell(mask: np.ndarray) -> str:
    x, y = _middle(mask)
    column, row = (int(np.abs(np.array(CELL_CENTERS) - value).argmin()) for value in (x, y))
    return POSITIONS[3 * row + column]


@functools.cache
def _templates() -> tuple[list[tuple[str, str]], np.ndarray]:
    """((shape, size) of each template, templates [n, 64 * 64] of 0 and 1).

    Every shape and size, drawn in the middle of the picture and then shifted by each pair of `_SHIFTS`.
    """
    red, white = _NAMES.index("red"), _NAMES.index("white")
    names, rows = [], []
    for shape in SHAPES:
        for size in SIZES:
            picture = draw(Scene((SceneObject(shape, "red", size, "center"),), "white"))
            distance = np.square(np.asarray(picture, np.float32)[..., None, :] - _PALETTE).sum(-1)
            mask = distance[..., red] < distance[..., white]
            for shift in itertools.product(_SHIFTS, _SHIFTS):
                names.append((shape, size))
                rows.append(np.roll(mask, shift, (0, 1)).ravel())
    return names, np.array(rows, np.float32)


def _match(mask: np.ndarray) -> tuple[str | None, str]:
    """(shape or None, size) of the template with the largest intersection over union."""
    x, y = _middle(mask)
    center_x, center_y = cell_center("center")
    # A roll may carry the rim of a component that spans the picture around; such a one fits no template anyway.
    centered = np.roll(mask, (round(center_y - y), round(center_x - x)), (0, 1)).ravel().astype(np.float32)
    names, templates = _templates()
    shared = templates @ centered
    overlap = shared / (templates.sum(1) + centered.sum() - shared)
    best = int(overlap.argmax())
    shape, size = names[best]
    return (shape if overlap[best] >= _LOWEST_OVERLAP else None), size
