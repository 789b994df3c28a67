"""Codes of the shipped image tokenizer depend on the patch; and the crops of its training match their latents."""

import collections
import random
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np

from ar_omni_jax.tokenizers.image import ImageTokenizer, read_image
from ar_omni_jax.tokenizers.image.training import matching_crops
from data_pipelines.toyworld import draw, random_scene


def test_crops_hold_the_pixels_of_their_latents():
    cells = np.random.default_rng(0).normal(size=(6, 4, 8, 2)).astype(np.float32)
    pixels = np.repeat(np.repeat(cells, 2, axis=1), 2, axis=2)[..., [0, 1, 0]]  # 2 pixels a code
    parts, inside = matching_crops(jax.random.key(3), jnp.array(pixels), jnp.array(cells), 2)
    assert parts.shape == (6, 4, 8, 3) and inside.shape == (6, 2, 4, 2)
    np.testing.assert_array_equal(parts[:, ::2, ::2, :2], inside)
    corners = {np.argwhere(cells[i, :, :, 0] == inside[i, 0, 0, 0]).tolist()[0][0] for i in range(len(cells))}
    assert len(corners) > 1  # not always the same crop


def test_a_flat_patch_has_few_codes():
    """What a language model reads as noise: the entropy of the code given all the pixels of its patch."""
    tokenizer = ImageTokenizer.load(resources.files("ar_omni_jax.tokenizers") / "assets" / "image")
    rng = random.Random(31)
    pictures = np.stack([np.asarray(draw(random_scene(rng))) for _ in range(200)])
    codes = tokenizer.encode(np.stack([read_image(p, tokenizer.image_size) for p in pictures]))
    by_patch = collections.defaultdict(list)
    for picture, row in zip(pictures, codes, strict=True):
        for place, code in enumerate(row):
            top, left = 8 * (place // 8), 8 * (place % 8)
            by_patch[picture[top : top + 8, left : left + 8].tobytes()].append(int(code))
    entropy = sum(len(found) * _entropy(found) for found in by_patch.values()) / codes.size
    assert entropy < 0.8, entropy  # nats; 1.98 before training had a term for it
    assert _entropy(codes.reshape(-1).tolist()) > 1.5  # and yet the codes say something


def _entropy(values) -> float:
    share = np.array(list(collections.Counter(values).values())) / len(values)
    return float(-(share * np.log(share)).sum())
