"""The tokenizer that ships with the package, on held-out toy-world scenes."""

import json
import random
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from ar_omni_jax.evaluation.toy_judges import mean_score, score_image
from ar_omni_jax.tokenizers.image import ImageTokenizer, read_image, to_uint8
from data_pipelines.toyworld import draw, random_scene

GOLDEN = Path(__file__).parents[1] / "golden"
ASSET = resources.files("ar_omni_jax.tokenizers") / "assets" / "image"


@pytest.fixture(scope="module")
def tokenizer():
    return ImageTokenizer.load(ASSET)


def test_scenes_survive_encoding_and_decoding(tokenizer):
    """98 % of what the judge reads on new scenes is still there after 64 codes."""
    rng = random.Random(20260)
    scenes = [random_scene(rng) for _ in range(100)]
    pixels = np.stack([read_image(np.asarray(draw(scene)), tokenizer.image_size) for scene in scenes])
    codes = tokenizer.encode(pixels)
    assert codes.dtype == np.int32 and codes.shape == (len(scenes), 64)
    decoded = tokenizer.decode(codes)
    assert decoded.dtype == np.uint8 and decoded.shape == (len(scenes), 64, 64, 3)
    scores = mean_score([score_image(picture, scene) for picture, scene in zip(decoded, scenes, strict=True)])
    assert min(scores[name] for name in ("shapes", "colors", "positions")) >= 0.98


def test_shipped_pictures_come_back(tokenizer):
    scenes = json.loads((GOLDEN / "image_scenes.json").read_text())
    pixels = np.stack([read_image(GOLDEN / name, tokenizer.image_size) for name in scenes])
    decoded = tokenizer.decode(tokenizer.encode(pixels))
    squared = np.mean(np.square(decoded.astype(np.float64) - to_uint8(pixels)), axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / squared) > 20).all()  # dB; the mean over the test split is in image.json


def test_batching_does_not_change_codes(tokenizer):
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 64, 64, 3)).astype(np.float32)
    together = tokenizer.encode(pixels)
    apart = np.concatenate([tokenizer.encode(picture[None]) for picture in pixels])
    # Other batch shapes may sum in another order, so near ties may flip.
    assert np.mean(together == apart) > 0.99
    assert tokenizer.encode(pixels[:0]).shape == (0, 64)
    assert tokenizer.decode(together[:0]).shape == (0, 64, 64, 3)


def test_it_says_where_it_came_from(tokenizer):
    description = json.loads(Path(f"{ASSET}.json").read_text())
    assert description["identity"] == tokenizer.identity
    provenance = description["provenance"]
    assert provenance["command"].startswith("python -m ar_omni_jax.tokenizers.train --config=")
    assert provenance["step"] == provenance["config"]["steps"]
    assert provenance["metrics"]["codebook_use"] >= 0.8
    assert (tokenizer.image_size, tokenizer.grid, tokenizer.codebook.shape) == (64, (8, 8), (512, 32))
    assert Path(f"{ASSET}.safetensors").stat().st_size < 5e6


def test_wrong_input_is_explained(tokenizer):
    with pytest.raises(ValueError, match=r"need \[B, 64, 64, 3\]"):
        tokenizer.encode(np.zeros((64, 64, 3), np.float32))
    with pytest.raises(ValueError, match=r"need integers \[B, 64\]"):
        tokenizer.decode(np.zeros((1, 63), np.int32))
    with pytest.raises(ValueError, match="need integers"):
        tokenizer.decode(np.zeros((1, 64), np.float32))
    with pytest.raises(ValueError, match=r"codes span -1\.\.512"):
        tokenizer.decode(np.array([[-1, 512] * 32]))


def test_missing_and_damaged_files_are_named(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.json does not exist"):
        ImageTokenizer.load(tmp_path / "nothing")
    text, weights = Path(f"{ASSET}.json").read_text(), Path(f"{ASSET}.safetensors").read_bytes()
    (tmp_path / "image.json").write_text(text)
    (tmp_path / "image.safetensors").write_bytes(weights[:1000])
    with pytest.raises(ValueError, match="image.safetensors is damaged"):
        ImageTokenizer.load(tmp_path / "image")
    changed = bytearray(weights)
    changed[-5] ^= 1
    (tmp_path / "image.safetensors").write_bytes(changed)
    with pytest.raises(ValueError, match="belong to different exports"):
        ImageTokenizer.load(tmp_path / "image")
    (tmp_path / "image.json").write_text("{}")
    with pytest.raises(ValueError, match="image.json is not usable"):
        ImageTokenizer.load(tmp_path / "image")
