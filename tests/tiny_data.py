"""A packed data set and tokenizers of a few dozen ids, made in milliseconds: no codec, no files of the toy world."""

import json
import shutil
from pathlib import Path

import numpy as np

import ar_omni_jax.tokenizers.bundle as bundle
from ar_omni_jax.documents import Role, Span, TokenDocument
from ar_omni_jax.vocabulary import Modality, compact_vocabulary
from data_pipelines import shards
from data_pipelines.dataset_info import Counts, DatasetInfo, write_info
from data_pipelines.pack_shards import PackOptions, pack
from data_pipelines.schema import encode_document

VOCABULARY = compact_vocabulary(40, 16, 16, (2, 2), name="tiny")
IDENTITIES = {"image": "image-tiny", "speech": "speech-tiny"}
TASKS = {"text": "text", "image": "caption", "speech": "asr"}
PROMPTS = {"text": Modality.TEXT, "image": Modality.IMAGE, "speech": Modality.SPEECH}


def make_tokenizers(directory: Path) -> Path:
    """A tokenizers folder that names the tiny vocabulary; its codecs have no weights."""
    directory.mkdir(parents=True)
    shutil.copy(bundle.BUILT_IN["toyworld"] / "text.model", directory / "text.model")
    for part, identity in IDENTITIES.items():
        (directory / f"{part}.json").write_text(json.dumps({"config": {}, "identity": identity}))
    (directory / "vocabulary.json").write_text(json.dumps(VOCABULARY.to_dict()))
    return directory


def make_document(group: str, number: int) -> TokenDocument:
    """<bos>, a prompt of the group's modality, <eoh>, a text answer that repeats itself, <eos>."""
    rng = np.random.default_rng([number, len(group)])
    vocabulary = VOCABULARY
    prompt = vocabulary.to_ids(PROMPTS[group], rng.integers(0, vocabulary.range_of(PROMPTS[group]).count, 4))
    answer = vocabulary.to_ids(Modality.TEXT, np.tile(rng.integers(0, 40, 2), 3))
    tokens = np.concatenate(
        [[vocabulary.marker("bos")], prompt, [vocabulary.marker("eoh")], answer, [vocabulary.marker("eos")]]
    ).astype(np.int32)
    lengths = [
        (Modality.MARKER, Role.PROMPT, 1),
        (PROMPTS[group], Role.PROMPT, 4),
        (Modality.MARKER, Role.PROMPT, 1),
        (Modality.TEXT, Role.RESPONSE, 6),
        (Modality.MARKER, Role.RESPONSE, 1),
    ]
    spans, at = [], 0
    for modality, role, length in lengths:
        spans.append(Span(modality, role, at, at + length))
        at += length
    return TokenDocument(f"{group}-{number}", TASKS[group], group, tokens, tuple(spans))


def make_packed(directory: Path, *, length: int = 32, documents: int = 60, seed: int = 0, tokenizers=None) -> Path:
    """Packed rows of all three groups, splits train and validation; returns their folder."""
    splits = {}
    for index, split in enumerate(("train", "validation")):
        counts = Counts()
        with shards.ShardWriter(directory / "shards" / f"{shards.shard_name(split, 0, 1)}") as writer:
            for number in range(documents):
                for group in TASKS:
                    document = make_document(group, seed + number + 1000 * index)
                    writer.write(encode_document(document, VOCABULARY))
                    counts.add(document)
        splits[split] = counts.to_dict()
    identities = tokenizers if tokenizers is not None else IDENTITIES
    write_info(directory / "shards", DatasetInfo("documents", VOCABULARY, identities, splits, {"template": "paper"}))
    pack(directory / "shards", directory / "packed", PackOptions(length))
    return directory / "packed"
