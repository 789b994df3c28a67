"""Sequences in the published layout, as the reference's files have them, and tokenizers without any codec."""

import json

import numpy as np

from ar_omni_jax.tokenizers.bundle import Tokenizers
from ar_omni_jax.vocabulary import chameleon_vocabulary
from data_pipelines import build_shards

VOCABULARY = chameleon_vocabulary((2, 2))
BOS, EOS, EOH, EOM = (VOCABULARY.marker(name) for name in ("bos", "eos", "eoh", "eom"))
BOI, EOI, BOA, EOA = (VOCABULARY.marker(name) for name in ("boi", "eoi", "boa", "eoa"))
USER, LABEL = [20000, 20001], [20002]  # "USER:", "GPT:"


def draw(rng, modality, count):
    ids = getattr(VOCABULARY, modality)
    return rng.integers(ids.start, ids.stop, count).tolist()


def image(rng):
    return [BOI, *draw(rng, "image", VOCABULARY.image_length), EOI]


def speech(rng, count=7):
    return [BOA, *draw(rng, "speech", count), EOA]


def pretraining_records(seed=0):
    """One record of each task of the reference, and where its response begins."""
    rng = np.random.default_rng(seed)
    words = draw(rng, "text", 5)
    made = {
        "image_caption": ([*image(rng), *draw(rng, "text", 3)], words, True),
        "speech_to_text": ([*draw(rng, "text", 3), *speech(rng)], words, True),
        "text_to_image": (draw(rng, "text", 4), image(rng), False),
        "text_to_speech": (draw(rng, "text", 4), speech(rng), False),
        "image_to_text": (image(rng), words, True),
        "speech_to_image": (speech(rng), image(rng), False),
    }
    records, starts = [], []
    for task, (asked, answered, written) in made.items():
        prompt = [BOS, *USER, *asked, EOH, *LABEL]
        response = words if written else answered[1:]  # of media the reference counts codes its own way
        records.append({"id": "a1", "task": task, "discrete_code": [*prompt, *answered, EOS], "response": response})
        starts.append(len(prompt))
    records.append({"id": "a1", "task": "text_to_text", "discrete_code": [BOS, *words, EOS], "response": words})
    starts.append(1)
    return records, starts


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def no_codecs():
    """Tokenizers that fail as soon as anything is asked of them but the vocabulary."""
    return Tokenizers(VOCABULARY, {"text": "published"}, {})


def build(source, path, output, tokenizers=None, **options):
    return build_shards.build(source, path, output, tokenizers or no_codecs(), quiet=True, **options)
