"""Small media in real codecs, and what must hold of the shards that dialogues become."""

import io

import numpy as np
import soundfile
from PIL import Image

from ar_omni_jax.tokenizers.image.preprocess import read_image
from ar_omni_jax.tokenizers.speech.audio import read_audio
from ar_omni_jax.vocabulary import Modality
from data_pipelines import build_shards
from data_pipelines.loader import make_loader
from data_pipelines.pack_shards import PackOptions, pack
from data_pipelines.shards import read_documents

RATE = 24000


def picture(path, seed=0):
    """An image file of the format that `path` ends in."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    Image.fromarray(pixels).resize((80, 60)).save(path)
    return path


def sound(target, seed=0, format=None, subtype=None, seconds=0.4):
    """A sound file of the format that `target` ends in; or bytes of `format` where it is None."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(RATE * seconds)) / RATE
    wave = 0.4 * np.sin(2 * np.pi * rng.uniform(100, 400) * time) + 0.01 * rng.standard_normal(len(time))
    buffer = io.BytesIO() if target is None else target
    soundfile.write(buffer, wave.astype(np.float32), RATE, format=format, subtype=subtype)
    return buffer.getvalue() if target is None else target


def media_codes(document, vocabulary):
    """[(modality, codes)] of the whole media of a token document, in order."""
    return [
        (s.modality, vocabulary.to_codes(s.modality, document.tokens[s.start : s.end]).tolist())
        for s in document.spans
        if s.modality in (Modality.IMAGE, Modality.SPEECH)
    ]


def direct_codes(tokenizers, modality, value):
    """Codes of one medium by the tokenizer itself."""
    if modality == Modality.IMAGE:
        return tokenizers.image.encode(read_image(value, tokenizers.image.image_size)[None])[0].tolist()
    return tokenizers.speech.encode_batch([read_audio(value, tokenizers.speech.sample_rate)])[0].tolist()


def build(source, path, output, tokenizers, **options):
    return build_shards.build(source, path, output, tokenizers, **({"quiet": True} | options))


def answered(tokens, tokenizers):
    """bool [n]: what stands between the label of the assistant and the end of its turn, from the tokens alone."""
    vocabulary = tokenizers.vocabulary
    label = vocabulary.to_ids(Modality.TEXT, tokenizers.text.encode(" ASSISTANT:")).tolist()
    out, inside, ends = np.zeros(len(tokens), bool), False, (vocabulary.marker("eom"), vocabulary.marker("eos"))
    after = 0
    for i, token in enumerate(tokens):
        out[i] = inside and i >= after
        if token == vocabulary.marker("eoh"):
            assert tokens[i + 1 : i + 1 + len(label)] == label
            inside, after = True, i + 1 + len(label)
        elif token in ends and out[i]:
            inside = False
    return out


def check_only_answers_are_trained_on(shards, packed, tokenizers):
    """Batches of packed `shards`: weight 1 at targets that the assistant says, all of them, and 0 elsewhere."""
    documents = list(read_documents(shards, "train", tokenizers.vocabulary))
    pack(shards, packed, PackOptions(max(len(d.tokens) for d in documents)))
    trained, settings = {}, {"path": packed, "response_only": True}
    with make_loader(settings, split="train", global_batch=1, seed=0, one_pass=True) as loader:
        for batch in loader:
            segments = batch["segment_ids"][0]
            for segment in range(1, segments.max() + 1):
                place = segments == segment
                trained[tuple(batch["tokens"][0][place].tolist())] = batch["loss_weights"][0][place]
    for document in documents:
        expected = answered(document.tokens.tolist(), tokenizers)
        assert expected.any() and not expected[0]
        assert trained.pop(tuple(document.tokens.tolist())).tolist() == [*expected[1:].astype(float), 0.0]
    assert not trained
