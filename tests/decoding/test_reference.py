"""The reference's selector and guidance, against vectors that its code computed."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ar_omni_jax.decoding.grammar import CLASSES, class_table, compile_grammar
from ar_omni_jax.decoding.guidance import mix_guided
from ar_omni_jax.decoding.strategy import ModeSwitch, StrategyError
from ar_omni_jax.vocabulary import chameleon_vocabulary

GOLDEN = Path(__file__).parent.parent / "golden"


def test_mode_switch_equals_the_reference():
    golden = json.loads((GOLDEN / "decode_modes.json").read_text())
    vocabulary = chameleon_vocabulary()
    assert vocabulary.marker("boa") == golden["speech_start"] and vocabulary.marker("ins") == golden["ins"]
    for case in golden["cases"]:
        got = ModeSwitch().greedy_for_next(case["tokens"], vocabulary, case["default_greedy"])
        assert got.tolist() == case["greedy_for_next"]


def test_the_compiled_switch_decodes_as_the_reference():
    """The declaration's machine, run over the golden streams, picks greedily exactly where the reference does."""
    golden = json.loads((GOLDEN / "decode_modes.json").read_text())
    vocabulary = chameleon_vocabulary()
    classes = class_table(vocabulary)
    for case in golden["cases"]:
        # The golden streams run through <eos>, so that only <eom> may end them here.
        switch = ModeSwitch(greedy_first=case["default_greedy"], ends=("eom",))
        grammar, starts = compile_grammar(vocabulary, tasks={"switch": switch})
        grammar = jax.tree.map(jnp.asarray, grammar)
        state, count, got = jnp.int32(starts["switch"]), jnp.int32(0), []
        assert bool(grammar.picking.greedy[state]) == case["default_greedy"]
        for token in case["tokens"]:
            assert int(grammar.legal_bits(state, count, jnp.int32(100))) == (1 << len(CLASSES)) - 1
            state, count = grammar.advance(state, count, int(classes[token]))
            got.append(bool(grammar.picking.greedy[state]))
        assert got == case["greedy_for_next"]


def test_guidance_equals_the_reference():
    golden = np.load(GOLDEN / "cfg.npz")
    full, image, unconditional = np.split(golden["logits_full_image_uncond"], 3)
    scales = {"text_scale": float(golden["text_scale"]), "image_scale": float(golden["image_scale"])}
    np.testing.assert_allclose(mix_guided(full, image, unconditional, **scales), golden["mixed"], atol=1e-5)
    np.testing.assert_allclose(mix_guided(full, image, unconditional, text_scale=1, image_scale=1), full, atol=1e-6)


def test_a_switch_of_unknown_markers_is_refused():
    for wrong, message in ((ModeSwitch(ends=("unk",)), "unk"), (ModeSwitch(ends=()), "needs an end")):
        with pytest.raises(StrategyError, match=message):
            compile_grammar(chameleon_vocabulary(), tasks={"switch": wrong})
