"""A small random corpus of token documents in shards, for tests of what comes after them; what is in packed folders."""

from pathlib import Path

import numpy as np

from ar_omni_jax.documents import GROUPS, Role, Span, TokenDocument
from ar_omni_jax.vocabulary import Modality, compact_vocabulary
from data_pipelines import schema, shards
from data_pipelines.dataset_info import Counts, DatasetInfo, write_info

VOCABULARY = compact_vocabulary(300, 100, 80, (2, 2))
KINDS = (  # group, task, modality of the prompt, modality of the response
    ("text", "text", Modality.TEXT, Modality.TEXT),
    ("image", "caption", Modality.IMAGE, Modality.TEXT),
    ("image", "t2i", Modality.TEXT, Modality.IMAGE),
    ("speech", "asr", Modality.SPEECH, Modality.TEXT),
    ("speech", "tts", Modality.TEXT, Modality.SPEECH),
)


def make_document(name, kind, n, rng):
    """`n` >= 4 tokens: bos, prompt, response, eos."""
    group, task, asked, given = KINDS[kind]
    cut = int(rng.integers(2, n - 1)) if n > 3 else 2

    def draw(modality, k):
        ids = VOCABULARY.range_of(modality)
        return rng.integers(ids.start, ids.stop, k)

    bos, eos = [VOCABULARY.marker("bos")], [VOCABULARY.marker("eos")]
    tokens = np.concatenate([bos, draw(asked, cut - 1), draw(given, n - cut - 1), eos]).astype(np.int32)
    spans = (
        Span(Modality.MARKER, Role.PROMPT, 0, 1),
        Span(asked, Role.PROMPT, 1, cut),
        Span(given, Role.RESPONSE, cut, n - 1),
        Span(Modality.MARKER, Role.RESPONSE, n - 1, n),
    )
    return TokenDocument(name, task, group, tokens, tuple(s for s in spans if s.end > s.start), "test")


def make_documents(count, seed=0, low=20, high=400, kinds=(0, 1, 2, 3, 4)):
    rng = np.random.default_rng(seed)
    kinds = list(kinds)
    return [
        make_document(f"doc{i}", kinds[int(rng.integers(len(kinds)))], int(rng.integers(low, high + 1)), rng)
        for i in range(count)
    ]


def write_documents(directory, splits, shard_count=3, vocabulary=VOCABULARY):
    """{split: documents} -> shards and dataset.json of kind "documents"."""
    info = DatasetInfo("documents", vocabulary, {"text": "test"}, {}, {"template": "paper"})
    for split, documents in splits.items():
        counts = Counts()
        for i in range(shard_count):
            with shards.ShardWriter(directory / shards.shard_name(split, i, shard_count)) as writer:
                for doc in documents[i::shard_count]:
                    writer.write(schema.encode_document(doc, vocabulary))
                    counts.add(doc)
        info.splits[split] = counts.to_dict()
    write_info(directory, info)
    return info


def key(tokens, classes):
    """A document's content, whatever it is called."""
    return tokens.tobytes() + classes.tobytes()


def rows_of(directory, split="train"):
    """(group, row) of all packed rows of a split."""
    for group in GROUPS:
        for path in shards.shard_paths(Path(directory) / split, group):
            for i, data in shards.read_records(path):
                yield group, schema.decode_packed(data, VOCABULARY, f"{path}: {i}")


def contents(directory):
    """{name: bytes} of all files below a folder."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(Path(directory).rglob("*")) if p.is_file()}
