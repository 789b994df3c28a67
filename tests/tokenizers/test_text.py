"""The default text tokenizer: lossless on any text, short on the toy language, reproducible."""

import json
import re

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax.tokenizers import train_text
from ar_omni_jax.tokenizers.bundle import BUILT_IN
from ar_omni_jax.tokenizers.text import TextTokenizer, TokenizerError


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer.load(BUILT_IN["toyworld"] / "text.model")


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=60))
def test_any_text_comes_back(tokenizer, text):
    pieces = tokenizer.encode(text)
    assert pieces.dtype == np.int32 and tokenizer.decode(pieces) == text


SPECIAL = [
    "",
    " ",
    "  two  spaces  ",
    "\n\n a\tb\r\n",
    "\0",
    "\u2581\u2581x\u2581",
    "\U0001f600 日本 é e\u0301 \u212b",
    "<s></s><unk><0x41>",
]


@pytest.mark.parametrize("text", SPECIAL)
def test_special_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_toy_sentences_take_about_a_piece_a_word(tokenizer):
    caption = " a large red square at the bottom right and a small yellow cross on the left on a black background"
    assert len(tokenizer.encode(caption)) <= 1.1 * len(caption.split())
    record = (BUILT_IN["toyworld"] / "text.json").read_text()
    assert tokenizer.identity in record  # model and record belong together


def test_other_english_is_not_spelled_out(tokenizer):
    text = " The weather report said that a strong wind would come from the northern hills before the evening."
    assert len(tokenizer.encode(text)) < 2 * len(text.split())


def test_template_strings_are_whole_words(tokenizer):
    for text in train_text.template_strings():
        words_and_marks = re.findall(r"[a-z]+|[^a-z\s]", text.lower())
        assert len(tokenizer.encode(" " + text)) <= len(words_and_marks), tokenizer.pieces(" " + text)


def test_pieces_cut_inside_a_character_are_shown_not_raised(tokenizer):
    pieces = tokenizer.encode("日")
    assert len(pieces) == 3 and "\ufffd" in tokenizer.decode(pieces[:2])


def test_bad_input_is_named(tokenizer, tmp_path):
    with pytest.raises(TokenizerError, match="surrogate.*position 1"):
        tokenizer.encode("a\ud800")
    with pytest.raises(TokenizerError, match="outside"):
        tokenizer.decode([tokenizer.size])
    with pytest.raises(TokenizerError, match="no such file.*train_text"):
        TextTokenizer.load(tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        TextTokenizer.load(tmp_path / "bad.model")


def train_other(tmp_path, **options):
    """A model with SentencePiece's own defaults but for `options`."""
    lines = iter(["the quick brown fox jumps over the lazy dog"] * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_prefix=str(tmp_path / "m"), vocab_size=320, hard_vocab_limit=False,
        model_type="bpe", minloglevel=2, **options,
    )  # fmt: skip
    return tmp_path / "m.model"


def test_lossy_models_are_refused(tmp_path):
    with pytest.raises(TokenizerError, match="byte fallback"):
        TextTokenizer.load(train_other(tmp_path))
    with pytest.raises(TokenizerError, match="changes its input"):
        TextTokenizer.load(train_other(tmp_path, byte_fallback=True))


def test_training_is_reproducible_and_reads_manifests(tmp_path, capsys):
    manifest = tmp_path / "train.jsonl"
    turns = [{"role": "user", "parts": [{"image": "x.png"}]}, [{"text": "zebra crossing zebra"}]]
    manifest.write_text((json.dumps({"id": "1", "turns": turns}) + "\n") * 50)
    models = []
    for name in ("a", "b"):
        train_text.main([f"--input={manifest}", f"--output={tmp_path / name}", "--size=600"])
        models.append((tmp_path / f"{name}.model").read_bytes())
    assert models[0] == models[1]
    assert "600 pieces" in capsys.readouterr().out
    assert len(TextTokenizer(models[0]).encode(" zebra")) == 1
    assert "zebra crossing zebra" in train_text.corpus([manifest])[-1]
    manifest.write_text("{}\n")
    with pytest.raises(TokenizerError, match="line 1"):
        train_text.corpus([manifest])
