"""A directory of tokenizers: layout without weights, weights on first use, clear words when a file is missing."""

import json
import shutil

import numpy as np
import pytest
from flax import nnx

from ar_omni_jax.tokenizers import bundle
from ar_omni_jax.tokenizers.bundle import BUILT_IN, Tokenizers, load_tokenizers
from ar_omni_jax.tokenizers.image.config import VQGANConfig
from ar_omni_jax.tokenizers.image.model import VQGAN
from ar_omni_jax.tokenizers.image.weights import save_tokenizer
from ar_omni_jax.tokenizers.speech import weights
from ar_omni_jax.tokenizers.speech.codec import SpeechCodec
from ar_omni_jax.tokenizers.speech.config import (
    BackboneConfig,
    EncoderConfig,
    HeadConfig,
    SpeechCodecConfig,
    default_config,
)
from ar_omni_jax.tokenizers.text import TextTokenizer, TokenizerError
from ar_omni_jax.vocabulary import Modality, VocabularyError, compact_vocabulary

IMAGE = VQGANConfig(ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, resolution=32, n_embed=64, z_channels=32)


@pytest.fixture
def directory(tmp_path):
    """Text tokenizer and the two descriptions, without any codec weights."""
    shutil.copy(BUILT_IN["toyworld"] / "text.model", tmp_path / "text.model")
    (tmp_path / "image.json").write_text(json.dumps({"identity": "i1", **IMAGE.to_dict()}))
    speech = json.loads(default_config().to_json())
    (tmp_path / "speech.json").write_text(json.dumps({"kind": "speech", "identity": "s1", "config": speech}))
    return tmp_path


def test_text_needs_no_codec(directory):
    tokenizers = load_tokenizers(directory, need=("text",))
    vocabulary = tokenizers.vocabulary
    assert vocabulary.image.count == 64 and vocabulary.image_grid == (8, 8)
    assert vocabulary.speech.count == default_config().codebook_size
    assert vocabulary.text.count == tokenizers.text.size and vocabulary.name == directory.name
    ids = vocabulary.to_ids(Modality.TEXT, tokenizers.text.encode(" a red circle"))
    assert tokenizers.text.decode(vocabulary.to_codes(Modality.TEXT, ids)) == " a red circle"
    assert tokenizers.identities["image"] == "i1" and tokenizers.identities["speech"] == "s1"


def test_fingerprint_changes_with_an_identity_and_with_the_layout(directory):
    before = load_tokenizers(directory, need=()).fingerprint
    assert load_tokenizers(directory, need=()).fingerprint == before
    record = json.loads((directory / "image.json").read_text())
    (directory / "image.json").write_text(json.dumps(record | {"identity": "i2"}))
    changed = load_tokenizers(directory, need=()).fingerprint
    layout = load_tokenizers(directory, need=()).vocabulary.to_dict() | {"image_grid": [4, 16]}
    (directory / "vocabulary.json").write_text(json.dumps(layout))
    assert len({before, changed, load_tokenizers(directory, need=()).fingerprint}) == 3


@pytest.mark.parametrize("part", ["image", "speech"])
def test_a_missing_file_names_the_command_that_makes_it(directory, part):
    with pytest.raises(TokenizerError, match=rf"{part}.safetensors is missing.*tokenizer_{part}"):
        load_tokenizers(directory, need=("text", part))
    (directory / f"{part}.json").unlink()
    with pytest.raises(TokenizerError, match=rf"{part}.json is missing.*tokenizers.train"):
        load_tokenizers(directory, need=("text",))


def test_bad_directories_and_descriptions_are_named(directory):
    with pytest.raises(TokenizerError, match="'nowhere': neither a directory nor one of toyworld"):
        load_tokenizers("nowhere")
    with pytest.raises(TokenizerError, match="no part 'video'"):
        load_tokenizers(directory, need=("video",))
    (directory / "image.json").write_text("{")
    with pytest.raises(TokenizerError, match="image.json: malformed JSON"):
        load_tokenizers(directory, need=("text",))
    (directory / "image.json").write_text('{"config": {}}')
    with pytest.raises(TokenizerError, match="key 'identity' is missing"):
        load_tokenizers(directory, need=("text",))
    (directory / "image.json").write_text('{"n_embed": 1, "identity": "x"}')
    with pytest.raises(TokenizerError, match="unusable config.*ddconfig"):
        load_tokenizers(directory, need=("text",))


class Codec:
    codebook_size, grid = 16, (2, 2)


def test_parts_are_made_once_at_first_use_and_must_fit_the_vocabulary():
    made = []

    def make(name):
        def call():
            made.append(name)
            return Codec()

        return call

    vocabulary = compact_vocabulary(8, 16, 99, (2, 2))
    tokenizers = Tokenizers(vocabulary, {}, {"image": make("image"), "speech": make("speech")})
    assert made == []
    assert tokenizers.image is tokenizers.image and made == ["image"]
    with pytest.raises(VocabularyError, match="speech: the tokenizer has 16, vocabulary 'compact' has 99"):
        tokenizers.speech  # noqa: B018
    wrong_grid = Tokenizers(compact_vocabulary(8, 16, 16, (4, 1)), {}, {"image": Codec})
    with pytest.raises(VocabularyError, match=r"image grid.*\(2, 2\).*\(4, 1\)"):
        wrong_grid.image  # noqa: B018


def test_codecs_are_read_from_their_files(directory):
    """Random weights saved as the exports save them: layout, identity and codes agree with the codec."""
    model = VQGAN(IMAGE, nnx.Rngs(0))
    save_tokenizer(str(directory / "image"), IMAGE, nnx.state(model, nnx.Param), {})
    speech_config = SpeechCodecConfig(
        encoder=EncoderConfig(n_filters=4, dimension=8, ratios=(4, 5), lstm_layers=1),
        backbone=BackboneConfig(dim=16, intermediate_dim=16, num_layers=1, position_net=False),
        head=HeadConfig(n_fft=40, hop_length=20),
        codebook_size=32,
        sample_rate=8000,
        causal=True,
    )
    weights.save(directory / "speech", SpeechCodec(speech_config, rngs=nnx.Rngs(0)), {})
    tokenizers = load_tokenizers(directory)
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    codes = tokenizers.image.encode(pixels)
    assert codes.shape == (2, tokenizers.vocabulary.image_length) and codes.max() < 64
    assert tokenizers.image.identity == tokenizers.identities["image"]
    wave = np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32)
    spoken = tokenizers.speech.encode_batch([wave])[0]
    assert len(spoken) == -(-1000 // tokenizers.speech.hop_length)
    assert tokenizers.speech.identity == tokenizers.identities["speech"]
    tokenizers.vocabulary.to_ids(Modality.SPEECH, spoken)
    (directory / "image.safetensors").write_bytes(b"cut short")
    with pytest.raises(TokenizerError, match="image.safetensors"):
        load_tokenizers(directory).image  # noqa: B018


def test_built_in_text_tokenizer_ships():
    text = TextTokenizer.load(bundle.BUILT_IN["toyworld"] / "text.model")
    assert text.size == 2048 and np.array_equal(text.encode(""), [])
