"""Record format of token shards: `TokenDocument` and `PackedExample` to bytes and back, with checks.

A record is a 16-byte header and a body, all little-endian:

    magic "AROM" | u8 kind | u8 bytes per id (2 or 4) | u16 schema version | u32 crc32 of body | u32 tokens

Document body: u32 length of a UTF-8 JSON object (id, task, group, source) and the object; u32 number of
spans and int32 (modality, role, start, end) each; token ids. Packed body: token ids [L], u16 segment ids [L],
u8 token classes [L]; positions follow from the segments. Every packed record of a data set has the same size,
so a batch decodes as one array (`decode_packed_batch`).

Files of records are in `data_pipelines.shards`, the description beside them in `data_pipelines.dataset_info`.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from ar_omni_jax.documents import GROUPS, TASKS, Role, Span, TokenDocument
from ar_omni_jax.vocabulary import JointVocabulary, Modality

SCHEMA_VERSION = 1
KINDS = ("documents", "packed")  # index is stored in each record
MAX_SEGMENTS = 65535

_MAGIC = b"AROM"
_HEADER = struct.Struct("<4sBBHII")
_COUNT = struct.Struct("<I")
_TOKEN_DTYPES = {2: np.dtype("<u2"), 4: np.dtype("<u4")}


class SchemaError(ValueError):
    """A shard, record or dataset.json that cannot be used; the message names the place and the remedy."""


@dataclasses.dataclass(frozen=True)
class PackedExample:
    """One row of L tokens holding whole documents one after another, padding at the end.

    tokens int32 [L]; segment_ids int32 [L], 1, 2, ... by document and 0 at padding; positions int32 [L], from
    0 in each document and 0 at padding; token_class uint8 [L] (`documents.token_class`), 0 at padding.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    token_class: np.ndarray


# -- shared parts ------------------------------------------------------------------------------------------
def _seal(kind: str, token_bytes: int, count: int, body: bytes) -> bytes:
    header = _HEADER.pack(_MAGIC, KINDS.index(kind), token_bytes, SCHEMA_VERSION, zlib.crc32(body), count)
    return header + body


def _open(data: bytes, kind: str, where: str) -> tuple[int, int, memoryview]:
    """Checks header and checksum. Returns (bytes per token id, number of tokens, body)."""
    if len(data) < _HEADER.size:
        raise SchemaError(f"{where}: record of {len(data)} bytes is cut short; copy or build the shard again")
    magic, kind_index, token_bytes, version, crc, count = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise SchemaError(f"{where}: not a record of this project; was the shard made by build_shards or pack_shards?")
    if version != SCHEMA_VERSION:
        raise SchemaError(
            f"{where}: schema version {version}, but this code reads version {SCHEMA_VERSION}; "
            "build the data again or use the release that made it"
        )
    found = KINDS[kind_index] if kind_index < len(KINDS) else f"kind {kind_index}"
    if found != kind:
        raise SchemaError(f"{where}: holds {found}, wanted {kind}; run pack_shards on documents before training")
    body = memoryview(data)[_HEADER.size :]
    if zlib.crc32(body) != crc or token_bytes not in _TOKEN_DTYPES:
        raise SchemaError(f"{where}: checksum mismatch, the record is corrupt; copy or build the shard again")
    return token_bytes, count, body


def record_length(data: bytes, where: str = "record") -> int:
    """Tokens of a record, from its header alone."""
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise SchemaError(f"{where}: not a record of this project; copy or build the shard again")
    return _HEADER.unpack_from(data)[-1]


def _token_array(tokens: np.ndarray) -> np.ndarray:
    """Ids as little-endian uint16 where they all fit, else uint32; SchemaError for a negative or huge id."""
    tokens = np.asarray(tokens)
    low, high = (int(tokens.min()), int(tokens.max())) if tokens.size else (0, 0)
    if low < 0 or high > 2**31 - 1:
        raise SchemaError(f"token ids must lie in [0, 2^31), found {low if low < 0 else high}")
    return tokens.astype(_TOKEN_DTYPES[2] if high < 1 << 16 else _TOKEN_DTYPES[4])


# -- documents ---------------------------------------------------------------------------------------------
def check_document(doc: TokenDocument, vocabulary: JointVocabulary | None = None, where: str = "") -> None:
    """SchemaError (or VocabularyError for ids) unless task, group, spans and ids of `doc` are sound."""
    where = f"{where}: document {doc.id!r}" if where else f"document {doc.id!r}"
    if doc.task not in TASKS:
        raise SchemaError(f"{where}: unknown task {doc.task!r}; known tasks: {', '.join(TASKS)}")
    if doc.group not in GROUPS:
        raise SchemaError(f"{where}: group {doc.group!r} is not one of {', '.join(GROUPS)}")
    if np.ndim(doc.tokens) != 1 or len(doc.tokens) == 0:
        raise SchemaError(f"{where}: tokens of shape {np.shape(doc.tokens)}; a document needs at least one token")
    end = 0
    for i, span in enumerate(doc.spans):
        if span.modality not in tuple(Modality) or span.role not in tuple(Role):
            raise SchemaError(f"{where}: span {i} has modality {span.modality}, role {span.role}; unknown")
        if span.start != end or span.end <= span.start or span.end > len(doc.tokens):
            raise SchemaError(
                f"{where}: span {i} = [{span.start}, {span.end}) is out of range: spans must cover "
                f"[0, {len(doc.tokens)}) in order, without gap or overlap, and the next starts at {end}; "
                "build it again"
            )
        end = span.end
    if end != len(doc.tokens):
        raise SchemaError(f"{where}: spans end at {end}, but there are {len(doc.tokens)} tokens; build it again")
    if vocabulary is not None:
        vocabulary.check_ids(doc.tokens, where)


def encode_document(doc: TokenDocument, vocabulary: JointVocabulary | None = None) -> bytes:
    """TokenDocument -> record, after `check_document`. Equal documents give equal bytes."""
    check_document(doc, vocabulary)
    meta = {"id": doc.id, "task": doc.task, "group": doc.group, "source": doc.source}
    text = json.dumps(meta, sort_keys=True, ensure_ascii=False).encode()
    spans = np.array([(s.modality, s.role, s.start, s.end) for s in doc.spans], "<i4").reshape(-1, 4)
    tokens = _token_array(doc.tokens)
    body = b"".join((_COUNT.pack(len(text)), text, _COUNT.pack(len(spans)), spans.tobytes(), tokens.tobytes()))
    return _seal("documents", tokens.itemsize, len(tokens), body)


def decode_document(data: bytes, vocabulary: JointVocabulary | None = None, where: str = "record") -> TokenDocument:
    """Record -> TokenDocument (tokens int32), checked. `where` names file and record in errors."""
    token_bytes, count, body = _open(data, "documents", where)
    try:
        (size,) = _COUNT.unpack_from(body, 0)
        meta = json.loads(bytes(body[4 : 4 + size]))
        at = 4 + size
        (number,) = _COUNT.unpack_from(body, at)
        at += 4
        rows = np.frombuffer(body, "<i4", number * 4, at).reshape(number, 4).tolist()
        at += number * 16
        if len(body) != at + count * token_bytes:
            raise ValueError(f"{len(body) - at} bytes for {count} tokens")
        tokens = np.frombuffer(body, _TOKEN_DTYPES[token_bytes], count, at).astype(np.int32)
        spans = tuple(Span(Modality(m), Role(r), start, end) for m, r, start, end in rows)
        doc = TokenDocument(meta["id"], meta["task"], meta["group"], tokens, spans, meta["source"])
    except (ValueError, KeyError, struct.error) as e:
        raise SchemaError(f"{where}: malformed document record ({e}); build the shard again") from e
    check_document(doc, vocabulary, where)
    return doc


# -- packed rows -------------------------------------------------------------------------------------------
def positions_of(segment_ids: np.ndarray) -> np.ndarray:
    """segment_ids [..., L] -> int32 positions [..., L]: distance from the segment's start, 0 at padding."""
    index = np.arange(segment_ids.shape[-1], dtype=np.int32)
    start = np.zeros(segment_ids.shape, np.int32)
    start[..., 1:] = np.where(segment_ids[..., 1:] != segment_ids[..., :-1], index[1:], 0)
    np.maximum.accumulate(start, axis=-1, out=start)
    positions = np.subtract(index, start, out=start)
    positions *= segment_ids != 0
    return positions


def check_packed(example: PackedExample, vocabulary: JointVocabulary | None = None, where: str = "row") -> None:
    """SchemaError unless segments are 1, 2, ... then 0 and positions and classes fit them."""
    segments = np.asarray(example.segment_ids)
    shape = segments.shape
    others = (example.tokens, example.positions, example.token_class)
    if len(shape) != 1 or any(np.shape(a) != shape for a in others):
        raise SchemaError(f"{where}: tokens, segment_ids, positions and token_class must all be [L], got {shape}")
    filled = int(np.count_nonzero(segments))
    steps = np.diff(segments[:filled], prepend=0)
    if segments[filled:].any() or not np.isin(steps, (0, 1)).all() or (filled and segments[0] != 1):
        raise SchemaError(f"{where}: segment ids must count 1, 2, ... with padding (0) only at the end; pack again")
    if segments.max(initial=0) > MAX_SEGMENTS:
        raise SchemaError(f"{where}: {segments.max()} documents in one row, at most {MAX_SEGMENTS} are possible")
    if not np.array_equal(example.positions, positions_of(segments)):
        raise SchemaError(f"{where}: positions do not restart at 0 with each segment; pack again")
    if vocabulary is not None:
        vocabulary.check_ids(example.tokens, where)


def encode_packed(example: PackedExample, token_bytes: int, vocabulary: JointVocabulary | None = None) -> bytes:
    """PackedExample -> record of 16 + L * (token_bytes + 3) bytes, after `check_packed`.

    `token_bytes` (see `token_bytes_for`) is fixed for a data set so that all its records have one size.
    """
    check_packed(example, vocabulary)
    tokens = _token_array(example.tokens)
    if tokens.itemsize > token_bytes:
        raise SchemaError(f"row has ids beyond {token_bytes} bytes; was it made with a larger vocabulary?")
    parts = (
        tokens.astype(_TOKEN_DTYPES[token_bytes]),
        np.asarray(example.segment_ids).astype("<u2"),
        np.asarray(example.token_class).astype(np.uint8),
    )
    return _seal("packed", token_bytes, len(tokens), b"".join(p.tobytes() for p in parts))


def token_bytes_for(vocabulary_size: int) -> int:
    """Bytes that hold any id of a vocabulary: 2 up to 65,536 ids, else 4."""
    return 2 if vocabulary_size <= 1 << 16 else 4


def decode_packed_batch(
    records: Sequence[bytes],
    length: int,
    vocabulary: JointVocabulary | None = None,
    name: Callable[[int], str] = "record {}".format,
) -> PackedExample:
    """B records of rows of `length` -> one PackedExample of [B, L] arrays.

    Checks headers, checksums, sizes and ids; `name(i)` says where record i stands, for errors.
    """
    widths = set()
    for i, data in enumerate(records):
        token_bytes, count, body = _open(data, "packed", name(i))
        if count != length or len(body) != length * (token_bytes + 3):
            raise SchemaError(f"{name(i)}: row of {count} tokens, wanted {length}; pack the data again to one length")
        widths.add(token_bytes)
    if len(widths) != 1:
        raise SchemaError(f"{name(0)}: rows with {sorted(widths)} bytes a token in one batch; pack the data again")
    width = widths.pop()
    raw = np.frombuffer(b"".join(records), np.uint8).reshape(len(records), -1)[:, _HEADER.size :]
    split = (length * width, length * (width + 2))
    tokens = np.ascontiguousarray(raw[:, : split[0]]).view(_TOKEN_DTYPES[width]).astype(np.int32)
    segments = np.ascontiguousarray(raw[:, split[0] : split[1]]).view("<u2").astype(np.int32)
    if vocabulary is not None and tokens.max(initial=0) >= vocabulary.size:
        row = int(np.argmax((tokens >= vocabulary.size).any(1)))
        vocabulary.check_ids(tokens[row], name(row))
    return PackedExample(tokens, segments, positions_of(segments), np.ascontiguousarray(raw[:, split[1] :]))


def decode_packed(data: bytes, vocabulary: JointVocabulary | None = None, where: str = "record") -> PackedExample:
    """Record -> PackedExample with [L] arrays, fully checked (slower than `decode_packed_batch`)."""
    _, length, _ = _open(data, "packed", where)
    batch = decode_packed_batch([data], length, vocabulary, lambda _: where)
    example = PackedExample(*(getattr(batch, f.name)[0] for f in dataclasses.fields(batch)))
    check_packed(example, vocabulary, where)
    return example
