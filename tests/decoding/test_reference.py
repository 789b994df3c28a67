"""The reference's selector and guidance, against vectors that its code computed."""

import json
from pathlib import Path

import numpy as np

from ar_omni_jax.decoding.guidance import mix_guided
from ar_omni_jax.decoding.strategy import ModeSwitch
from ar_omni_jax.vocabulary import chameleon_vocabulary

GOLDEN = Path(__file__).parent.parent / "golden"


def test_mode_switch_equals_the_reference():
    golden = json.loads((GOLDEN / "decode_modes.json").read_text())
    vocabulary = chameleon_vocabulary()
    assert vocabulary.marker("boa") == golden["speech_start"] and vocabulary.marker("ins") == golden["ins"]
    for case in golden["cases"]:
        got = ModeSwitch().greedy_for_next(case["tokens"], vocabulary, case["default_greedy"])
        assert got.tolist() == case["greedy_for_next"]


def test_guidance_equals_the_reference():
    golden = np.load(GOLDEN / "cfg.npz")
    full, image, unconditional = np.split(golden["logits_full_image_uncond"], 3)
    scales = {"text_scale": float(golden["text_scale"]), "image_scale": float(golden["image_scale"])}
    np.testing.assert_allclose(mix_guided(full, image, unconditional, **scales), golden["mixed"], atol=1e-5)
    np.testing.assert_allclose(mix_guided(full, image, unconditional, text_scale=1, image_scale=1), full, atol=1e-6)
