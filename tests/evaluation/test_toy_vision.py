"""The judge of pictures reads true ones without error and is not put off by what a codec does to them."""

import random

import numpy as np
import pytest
from scipy import ndimage

from ar_omni_jax.evaluation.toy_judges import mean_score, score_image
from ar_omni_jax.evaluation.toy_vision import read_scene
from data_pipelines.toyworld import Scene, SceneObject, draw, random_scene
from data_pipelines.toyworld.scene import BACKGROUNDS, COLORS


def pictures(count: int, seed: int):
    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    return scenes, [np.asarray(draw(scene)) for scene in scenes]


def spoil(pixels: np.ndarray, blur: float, noise: float, rng: np.random.Generator) -> np.ndarray:
    soft = ndimage.gaussian_filter(pixels.astype(float), (blur, blur, 0))
    return np.clip(np.round(soft + rng.normal(0, noise, soft.shape)), 0, 255).astype(np.uint8)


def test_true_pictures_are_read_without_error():
    scenes, images = pictures(200, seed=11)
    assert [read_scene(pixels) for pixels in images] == scenes


@pytest.mark.parametrize(
    ("blur", "noise", "least"), [(0.7, 0, 1.0), (1.0, 0, 0.998), (0, 25, 0.998), (0.8, 10, 0.998), (1.2, 12, 0.985)]
)
def test_blur_and_noise_are_borne(blur, noise, least):
    scenes, images = pictures(60, seed=12)
    rng = np.random.default_rng(0)
    scores = [score_image(spoil(p, blur, noise, rng), s) for p, s in zip(images, scenes, strict=True)]
    assert mean_score(scores)["attributes"] >= least


def test_blocks_of_a_coarse_codec_are_borne():
    """JPEG of quality 50: blocks of 8 pixels and ringing; colour at full resolution, as codecs of RGB have it."""
    import io

    from PIL import Image

    scenes, images = pictures(60, seed=13)
    scores = []
    for pixels, scene in zip(images, scenes, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=50, subsampling=0)
        scores.append(score_image(np.asarray(Image.open(buffer)), scene))
    assert mean_score(scores)["attributes"] >= 0.98


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_empty_picture_has_no_objects(background):
    assert read_scene(np.full((64, 64, 3), BACKGROUNDS[background], np.uint8)) == Scene((), background)


def test_noise_alone_has_few_objects_and_stripes_no_shape():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    scene = Scene((SceneObject("circle", "red", "large", "center"),), "white")
    assert score_image(noise, scene)["exact"] == 0
    stripe = np.full((64, 64, 3), 245, np.uint8)
    stripe[30:34] = COLORS["red"]
    assert read_scene(stripe).objects[0].shape is None


def test_two_objects_of_one_color_are_two():
    first, second = SceneObject("circle", "red", "large", "left"), SceneObject("cross", "red", "small", "top right")
    scene = Scene((first, second), "gray")
    assert read_scene(np.asarray(draw(scene))) == scene


def test_an_object_off_its_grid_goes_to_the_nearest_cell():
    scene = Scene((SceneObject("triangle", "blue", "large", "center"),), "white")
    pixels = np.roll(np.asarray(draw(scene)), (4, -5), (0, 1))
    assert read_scene(pixels) == scene
    assert read_scene(np.roll(pixels, (0, -8), (0, 1))).objects[0].position == "left"


@pytest.mark.parametrize("bad", [np.zeros((32, 32, 3), np.uint8), np.zeros((64, 64, 3), np.float32)])
def test_other_arrays_are_refused(bad):
    with pytest.raises(ValueError, match=r"uint8 \[64, 64, 3\]; got"):
        read_scene(bad)
