"""The work that both sides of the training benchmark do: the same documents, the same weights, the same losses.

A step is a fixed set of documents. This project reads them packed into rows, PyTorch as its users do: one document
a row, padded to the longest of its micro-batch. So both do the same useful tokens a step, and their losses of the
first step must agree.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from ar_omni_jax.documents import Role, Span, TokenDocument
from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.vocabulary import JointVocabulary, Modality, compact_vocabulary
from data_pipelines.loader import assemble_batch
from data_pipelines.packing import fill_row, pack_documents
from data_pipelines.schema import PackedExample
from data_pipelines.weights import weight_table

GRID = (8, 8)
CODES = 512
CHANNELS = 32  # of the image codebook
PERCEPTUAL_WEIGHT = 0.01
Z_LOSS = 1e-5
LEARNING_RATE = 1e-3
ADAM = {"b1": 0.9, "b2": 0.98, "eps": 1e-8}
WEIGHT_DECAY = 0.05
CLIP_NORM = 1.0
REFUSED = 5  # documents that do not fit, until rows count as full


@dataclasses.dataclass(frozen=True)
class Size:
    """text, speech: entries of the vocabulary's ranges. length, rows: of this project's batch; `micro`: documents that
    PyTorch takes at a time."""

    text: int
    speech: int
    num_layers: int
    d_model: int
    num_heads: int
    d_ff: int
    length: int
    rows: int
    micro: int


SIZES = {
    "tiny": Size(300, 64, 1, 32, 2, 48, 256, 2, 4),  # for tests
    "toy": Size(2048, 2048, 4, 192, 6, 384, 512, 4, 8),  # the main job's model
    "100m": Size(6112, 2048, 12, 768, 12, 2048, 1024, 4, 8),
}


def vocabulary_of(size: Size) -> JointVocabulary:
    """Its joint vocabulary."""
    return compact_vocabulary(size.text, CODES, size.speech, GRID, name="benchmark")


def model_of(size: Size, **options) -> TransformerConfig:
    """The model's configuration; `options` on top."""
    return TransformerConfig(
        vocab_size=vocabulary_of(size).size,
        num_layers=size.num_layers,
        d_model=size.d_model,
        num_heads=size.num_heads,
        num_kv_heads=size.num_heads,
        head_dim=size.d_model // size.num_heads,
        d_ff=size.d_ff,
        max_length=size.length,
        norm_placement="swin",
        **options,
    )


def codebook() -> np.ndarray:
    """float32 [CODES, CHANNELS], frozen, drawn once."""
    return np.random.default_rng(5).standard_normal((CODES, CHANNELS), np.float32)


def documents(size: Size, step: int) -> list[TokenDocument]:
    """The documents of a step: texts, pictures with captions and utterances with transcripts, lengths as in the toy
    world (15 to 40, 80 to 110 and 90 to 220 tokens), by tokens 1 : 2 : 4, about `rows` rows full."""
    rng = np.random.default_rng([size.d_model, step])
    vocabulary = vocabulary_of(size)
    found, used, refused = [], {"text": 0, "image": 0, "speech": 0}, 0
    share = {"text": 1, "image": 2, "speech": 4}
    for number in itertools.count():
        group = min(used, key=lambda name: used[name] / share[name]) if not refused else "text"
        made = _document(vocabulary, group, f"{step}-{number}", rng)
        if len(_rows(size, [*found, made])) <= size.rows:
            found.append(made)
            used[group] += len(made.tokens)
        elif refused < REFUSED:
            refused += 1  # what is left is for short texts
        else:
            return found


def _rows(size: Size, found: list[TokenDocument]) -> list[list[int]]:
    return pack_documents([len(d.tokens) for d in found], size.length, np.random.default_rng(0))


def _document(vocabulary: JointVocabulary, group: str, name: str, rng: np.random.Generator) -> TokenDocument:
    """<bos> prompt <eoh> answer <eos> of random ids."""

    def some(modality, count):
        return modality, vocabulary.to_ids(modality, rng.integers(0, vocabulary.range_of(modality).count, count))

    text = some(Modality.TEXT, int(rng.integers(12, 37)))
    image = some(Modality.IMAGE, GRID[0] * GRID[1])
    speech = some(Modality.SPEECH, int(rng.integers(70, 180)))
    tasks = {"text": ("text", text, None), "image": ("t2i", text, image), "speech": ("asr", speech, text)}
    if group == "image" and rng.random() < 0.5:
        tasks["image"] = ("caption", image, text)
    task, prompt, answer = tasks[group]
    return document_of(vocabulary, name, task, group, prompt, answer)


def document_of(vocabulary: JointVocabulary, name: str, task: str, group: str, prompt, answer=None) -> TokenDocument:
    """<bos> prompt <eoh> answer <eos>, or <bos> prompt <eos> to be learned whole. prompt, answer: (modality, ids)."""
    marks = {name: np.array([vocabulary.marker(name)], np.int32) for name in ("bos", "eoh", "eos")}
    parts = [(Modality.MARKER, Role.PROMPT, marks["bos"])]
    if answer is None:
        parts.append((prompt[0], Role.RESPONSE, prompt[1]))
    else:
        parts += [(prompt[0], Role.PROMPT, prompt[1]), (Modality.MARKER, Role.PROMPT, marks["eoh"])]
        parts.append((answer[0], Role.RESPONSE, answer[1]))
    parts.append((Modality.MARKER, Role.RESPONSE, marks["eos"]))
    ends = np.cumsum([len(ids) for _, _, ids in parts])
    spans = [Span(m, r, int(end) - len(ids), int(end)) for (m, r, ids), end in zip(parts, ends, strict=True)]
    tokens = np.concatenate([ids for _, _, ids in parts]).astype(np.int32)
    return TokenDocument(name, task, group, tokens, tuple(spans))


def batch_of(rows: list[list[TokenDocument]], length: int, pad: int) -> dict[str, np.ndarray]:
    """Rows of documents as the loader gives them, [rows, length]."""
    filled = [fill_row([d.tokens for d in row], [d.classes() for d in row], length, pad) for row in rows]
    fields = (
        np.stack(values)
        for values in zip(*((f.tokens, f.segment_ids, f.positions, f.token_class) for f in filled), strict=True)
    )
    return assemble_batch(PackedExample(*fields), weight_table(), pad)


def packed_batch(size: Size, found: list[TokenDocument]) -> dict[str, np.ndarray]:
    """The documents in rows [rows, length], as the loader gives them."""
    rows = [[found[i] for i in row] for row in _rows(size, found)]
    rows += [[] for _ in range(size.rows - len(rows))]
    return batch_of(rows, size.length, vocabulary_of(size).pad)


def padded_batches(size: Size, found: list[TokenDocument]) -> list[dict[str, np.ndarray]]:
    """The documents in the order they came, `micro` at a time, one a row, padded to the longest of each batch."""
    pieces = [found[i : i + size.micro] for i in range(0, len(found), size.micro)]
    pad = vocabulary_of(size).pad
    return [batch_of([[d] for d in piece], max(len(d.tokens) for d in piece), pad) for piece in pieces]
