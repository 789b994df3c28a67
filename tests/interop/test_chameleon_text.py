"""Chameleon's text tokenizer: its ids against the published table, its encodings against HF `tokenizers`."""

import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ar_omni_jax.interop.vqgan_files import published_shapes as vqgan_shapes
from ar_omni_jax.tokenizers.bundle import load_tokenizers
from ar_omni_jax.tokenizers.chameleon_text import FILE, ChameleonTextTokenizer, read_published
from ar_omni_jax.tokenizers.image.config import VQGANConfig
from ar_omni_jax.tokenizers.image.weights import save_weights
from ar_omni_jax.tokenizers.speech.config import BackboneConfig, EncoderConfig, HeadConfig, SpeechCodecConfig
from ar_omni_jax.tokenizers.speech.published import load_published
from ar_omni_jax.tokenizers.speech.published import published_shapes as speech_shapes
from ar_omni_jax.tokenizers.speech.weights import save as save_speech
from ar_omni_jax.tokenizers.text import TokenizerError
from ar_omni_jax.vocabulary import Modality, VocabularyError, chameleon_vocabulary
from data_pipelines import build_shards
from data_pipelines.dataset_info import read_info
from data_pipelines.shards import read_documents

hf = pytest.importorskip("tokenizers")

CORPUS = ["the quick brown fox jumps over the lazy dog", "a large red square on a black background", "1234 — café 日本"]
TEXT_START, SIZE = 16384, 65536


def published_names():
    """Names of the ids below the text, written down from the published table."""
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    names += [f"IMGIMG{''.join('ABCDEFGHIJ'[int(digit)] for digit in str(code))}Z" for code in range(8192)]
    names += ["<eoss>", "<racm3:break>"] + [f"<reserved{n:05d}>" for n in range(8194, 16380)]
    assert len(names) == TEXT_START and names[8710] == "<reserved08706>" and names[8195] == "IMGIMGIBJBZ"
    return names


def build():
    """The JSON of a small byte-level BPE of the published make: few merges, the other text ids never produced."""
    bpe = hf.Tokenizer(hf.models.BPE())
    bpe.pre_tokenizer = hf.pre_tokenizers.Sequence(
        [hf.pre_tokenizers.Digits(individual_digits=True), hf.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = hf.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=1
    )
    bpe.train_from_iterator(CORPUS * 3, trainer)
    bpe.decoder = hf.decoders.ByteLevel()
    record = json.loads(bpe.to_str())
    learned = sorted(record["model"]["vocab"], key=record["model"]["vocab"].get)
    names = published_names()
    names += learned + [f"filler{i}" for i in range(SIZE - TEXT_START - len(learned))]
    record["model"]["vocab"] = {name: i for i, name in enumerate(names)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [0, 1, 2, 3, 4, 8195, 8196, 8197, 8710]
    record["added_tokens"] = [{"id": i, "content": names[i], **flags} for i in added]
    record["post_processor"] = json.loads(
        hf.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]).__getstate__()
    )
    return record


@pytest.fixture(scope="module")
def record():
    return build()


@pytest.fixture(scope="module")
def path(record, tmp_path_factory):
    path = tmp_path_factory.mktemp("chameleon") / FILE
    path.write_text(json.dumps(record))
    return path


@pytest.fixture(scope="module")
def tokenizer(path):
    return ChameleonTextTokenizer.load(path)


@pytest.fixture(scope="module")
def reference(path):
    """HF's own reading of the file, told to take the names of special tokens for text."""
    reference = hf.Tokenizer.from_file(str(path))
    reference.encode_special_tokens = True
    return reference


def test_the_vocabulary_is_the_published_one(path, tokenizer):
    published = read_published(path, (32, 32))
    assert published.vocabulary == chameleon_vocabulary() and published.identity == tokenizer.identity
    assert tokenizer.size == 49152 and tokenizer.identity.startswith("chameleon:")
    assert published.vocabulary.to_ids(Modality.SPEECH, [0, 4095]).tolist() == [8724, 12819]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=50) | st.text("abc dféor 0123\n\t'<>/s", max_size=40))
def test_any_text_is_encoded_and_decoded_as_hf_does(tokenizer, reference, text):
    pieces = tokenizer.encode(text)
    ids = reference.encode(text, add_special_tokens=False).ids
    assert pieces.dtype == np.int32
    assert tokenizer.vocabulary.to_ids(Modality.TEXT, pieces).tolist() == ids
    assert tokenizer.decode(pieces) == text == reference.decode(ids, skip_special_tokens=False)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 420), max_size=20))
def test_any_pieces_are_decoded_as_hf_does(tokenizer, reference, pieces):
    ids = [TEXT_START + piece for piece in pieces]
    assert tokenizer.decode(pieces) == reference.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("text", ["</s>", "say <s> IMGIMGAZ<racm3:break> <reserved08706>", "<eoss><unk>"])
def test_names_of_special_tokens_are_text_when_a_user_types_them(tokenizer, reference, path, text):
    plain = hf.Tokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids
    assert min(plain) < TEXT_START  # what must not happen here: a user's "</s>" would end the turn
    ids = tokenizer.vocabulary.to_ids(Modality.TEXT, tokenizer.encode(text)).tolist()
    assert ids == reference.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_merges_are_used_and_shown(tokenizer):
    assert tokenizer.pieces("the quick") == ["the", "Ġquick"]
    with pytest.raises(TokenizerError, match="surrogate.*position 1"):
        tokenizer.encode("a\ud800")
    with pytest.raises(TokenizerError, match="outside"):
        tokenizer.decode([tokenizer.size])


# -- files that are not Chameleon's ------------------------------------------------------------------------------
def _swap(vocab, a, b):
    vocab[a], vocab[b] = vocab[b], vocab[a]


def _rename(vocab, old, new):
    vocab[new] = vocab.pop(old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: _swap(v, "<eoss>", "<racm3:break>"), r"id 8196 is '<racm3:break>', must be <eoss>; id 8197 is"),
        (lambda v: _swap(v, "<pad>", "</s>"), "id 1 is '</s>', must be <pad>"),
        (lambda v: _swap(v, "IMGIMGAZ", "IMGIMGBZ"), "id 4 is 'IMGIMGBZ', must be the name of image code 0"),
        (lambda v: _rename(v, "<reserved08720>", "speech0"), "id 8724 is 'speech0', must be <reserved08720>"),
        (lambda v: v.pop("filler7"), r"id 16\d+ has no token, must be a text token"),
        (lambda v: v.update(extra=SIZE), "id 65536 is 'extra', is outside the 65536 ids"),
        (lambda v: v.update(extra=20000), "id 20000 is both 'filler.*' and 'extra'"),
        (lambda v: v.clear(), "id 0 has no token(.|\n)*and 65526 more"),
    ],
)
def test_a_foreign_vocabulary_is_named_by_id(record, tmp_path, change, message):
    vocab = dict(record["model"]["vocab"])
    change(vocab)
    changed = {"added_tokens": [], "model": {**record["model"], "vocab": vocab}}
    (tmp_path / FILE).write_text(json.dumps({**record, **changed}))
    with pytest.raises(TokenizerError, match=message):
        read_published(tmp_path / FILE)


def test_renamed_reserved_ids_are_known(record, tmp_path):
    vocab = dict(record["model"]["vocab"])
    for old, new in (("<reserved08707>", "<image>"), ("<reserved12816>", "<eoa>"), ("<reserved12817>", "<boa>")):
        _rename(vocab, old, new)
    assert vocab["<image>"] == 8711 and vocab["<boa>"] == 12821
    (tmp_path / FILE).write_text(json.dumps({**record, "model": {**record["model"], "vocab": vocab}}))
    assert read_published(tmp_path / FILE).vocabulary == chameleon_vocabulary()


def test_files_of_another_kind_are_named(record, tmp_path, monkeypatch, path):
    file = tmp_path / FILE
    with pytest.raises(TokenizerError, match="no such file"):
        read_published(file)
    file.write_text("{")
    with pytest.raises(TokenizerError, match="malformed JSON"):
        read_published(file)
    file.write_text(json.dumps({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}))
    with pytest.raises(TokenizerError, match="not a BPE tokenizer"):
        read_published(file)
    file.write_text(json.dumps({**record, "pre_tokenizer": None, "decoder": None}))
    with pytest.raises(TokenizerError, match="no byte-level BPE"):
        ChameleonTextTokenizer.load(file)
    changed = {**record["pre_tokenizer"]["pretokenizers"][1], "add_prefix_space": True}
    file.write_text(json.dumps({**record, "pre_tokenizer": changed, "normalizer": {"type": "NFC"}}))
    with pytest.warns(UserWarning, match="changes its input"):
        ChameleonTextTokenizer.load(file)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TokenizerError, match="pip install tokenizers"):
        ChameleonTextTokenizer.load(path)
    assert read_published(path).identity  # the check itself needs no package


# -- a folder of published files ---------------------------------------------------------------------------------
IMAGE = VQGANConfig(ch=32, ch_mult=(1,), num_res_blocks=1, resolution=2, n_embed=8192, z_channels=4, embed_dim=4)
SPEECH = SpeechCodecConfig(
    EncoderConfig(n_filters=2, dimension=4, ratios=(5, 4), lstm_layers=1),
    BackboneConfig(dim=32, intermediate_dim=8, num_layers=1), HeadConfig(n_fft=40, hop_length=20),
    codebook_size=4096, sample_rate=8000,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(path):
    """The text tokenizer and codecs of random weights with the published numbers of codes."""
    from tests.interop.test_vqgan import random_weights

    save_weights(str(path.parent / "image"), IMAGE, random_weights(vqgan_shapes(IMAGE), 0), {})
    save_speech(path.parent / "speech", load_published(random_weights(speech_shapes(SPEECH), 0), SPEECH), {})
    return path.parent


def test_a_folder_with_chameleons_text_has_the_published_layout(folder):
    tokenizers = load_tokenizers(folder)
    vocabulary = tokenizers.vocabulary
    assert vocabulary == chameleon_vocabulary((2, 2)) and sorted(tokenizers.identities) == ["image", "speech", "text"]
    ids = vocabulary.to_ids(Modality.TEXT, tokenizers.text.encode(" the fox"))
    assert (ids >= TEXT_START).all() and tokenizers.text is tokenizers.text
    layout = folder / "vocabulary.json"
    layout.write_text(json.dumps(chameleon_vocabulary((32, 32)).to_dict()))
    with pytest.raises(VocabularyError, match="vocabulary.json"):
        load_tokenizers(folder)
    layout.write_text(json.dumps(vocabulary.to_dict()))
    assert load_tokenizers(folder).fingerprint == tokenizers.fingerprint
    layout.unlink()


def test_codecs_may_be_missing_where_nobody_needs_them(path, tmp_path):
    shutil.copy(path, tmp_path / FILE)
    tokenizers = load_tokenizers(tmp_path, need=("text",))
    assert tokenizers.vocabulary == chameleon_vocabulary() and list(tokenizers.identities) == ["text"]
    with pytest.raises(TokenizerError, match="image.json is missing.*convert --from=vqgan --to=tokenizer"):
        load_tokenizers(tmp_path)
    with pytest.raises(TokenizerError, match="speech.json is missing.*convert --from=wavtokenizer --to=tokenizer"):
        load_tokenizers(tmp_path, need=("text", "speech"))


def test_shards_are_built_with_a_folder_of_published_files(folder, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (2, 2, 3), np.uint8)).save(tmp_path / "x.png")
    soundfile.write(tmp_path / "x.wav", rng.uniform(-1, 1, 150).astype(np.float32), 8000)
    text = {"text": "a large red square"}
    records = [
        {"id": "1", "task": "caption", "turns": [[{"image": "x.png"}], [text]]},
        {"id": "2", "task": "tts", "turns": [[text], [{"speech": "x.wav"}]]},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    build_shards.main([f"--input={tmp_path / 'train.jsonl'}", f"--output={tmp_path / 'out'}", f"--tokenizers={folder}"])
    tokenizers = load_tokenizers(folder)
    vocabulary = tokenizers.vocabulary
    info = read_info(tmp_path / "out", "documents", vocabulary.fingerprint)
    assert info.tokenizers == tokenizers.identities
    caption, tts = sorted(read_documents(tmp_path / "out", "train", vocabulary), key=lambda d: d.id)
    begin = caption.tokens.tolist().index(8197)
    image = caption.tokens[begin + 1 : begin + 5]
    assert ((4 <= image) & (image < 8196)).all() and caption.tokens[begin + 5] == 8196
    begin, end = tts.tokens.tolist().index(12821), tts.tokens.tolist().index(12820)
    speech = tts.tokens[begin + 1 : end]
    assert len(speech) == 8 and ((8724 <= speech) & (speech < 12820)).all()
    words = tts.tokens[tts.tokens >= TEXT_START]
    assert "a large red square" in tokenizers.text.decode(vocabulary.to_codes(Modality.TEXT, words))
