"""Corpora of the benchmark's own making: token documents with lengths of published corpora, and pictures and sounds,
in the layouts of several sources."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from ar_omni_jax.documents import Role, Span, TokenDocument
from ar_omni_jax.vocabulary import JointVocabulary, Modality
from data_pipelines import schema, shards
from data_pipelines.dataset_info import Counts, DatasetInfo, write_info

SHARDS = 4
_PICTURE = (320, 240)  # pixels
_SOUND_RATE, _SOUND_SECONDS = 24000, 2
_SHORT_SECONDS, _SMALL_PICTURE = 0.25, (64, 48)  # of the corpora below, which are about their index
_PER_FILE = 1000  # records of a tar or a parquet file
_PER_FOLDER = 100  # utterances of a chapter or speaker
_TEXT = "document number {} of the benchmark"


def draw_lengths(group: str, rng: np.random.Generator, count: int) -> np.ndarray:
    """Tokens of documents: 1024 codes an image and LAION's captions, MLS at 40 codes a second, pages of the web."""
    if group == "image":
        return rng.integers(1030, 1110, count)
    if group == "speech":
        return rng.integers(200, 1301, count)
    return np.clip(np.exp(rng.normal(6.2, 1.1, count)).astype(np.int64), 30, 4000)


def token_documents(count: int, vocabulary: JointVocabulary, seed: int = 0) -> Iterator[TokenDocument]:
    """`count` documents of random ids: a fifth text, and captions, pictures, transcripts and readings alike."""
    rng = np.random.default_rng(seed)
    kinds = (
        ("text", "text", Modality.TEXT, Modality.TEXT),
        ("image", "caption", Modality.IMAGE, Modality.TEXT),
        ("image", "t2i", Modality.TEXT, Modality.IMAGE),
        ("speech", "asr", Modality.SPEECH, Modality.TEXT),
        ("speech", "tts", Modality.TEXT, Modality.SPEECH),
    )
    lengths = {group: draw_lengths(group, rng, count) for group in ("text", "image", "speech")}
    for i in range(count):
        group, task, asked, given = kinds[i % len(kinds)]
        length = int(lengths[group][i])
        media = min(1024, length - 6) if group == "image" else (length * 4) // 5
        cut = media if asked in (Modality.IMAGE, Modality.SPEECH) else length - media
        runs = [(vocabulary.range_of(asked), cut), (vocabulary.range_of(given), length - cut)]
        tokens = np.concatenate([rng.integers(ids.start, ids.stop, n) for ids, n in runs])
        spans = (Span(asked, Role.PROMPT, 0, cut), Span(given, Role.RESPONSE, cut, length))
        yield TokenDocument(f"{task}{i}", task, group, tokens.astype(np.int32), spans, "benchmark")


def write_token_shards(directory: Path, count: int, vocabulary: JointVocabulary) -> DatasetInfo:
    """Token shards of `token_documents` and their dataset.json, as build_shards leaves them."""
    info = DatasetInfo("documents", vocabulary, {"text": "benchmark"}, {}, {"template": "paper"})
    counts = Counts()
    bounds = [count * i // SHARDS for i in range(SHARDS + 1)]
    documents = token_documents(count, vocabulary)
    for i in range(SHARDS):
        with shards.ShardWriter(directory / shards.shard_name("train", i, SHARDS)) as writer:
            for _ in range(bounds[i + 1] - bounds[i]):
                document = next(documents)
                writer.write(schema.encode_document(document, vocabulary))
                counts.add(document)
    info.splits["train"] = counts.to_dict()
    write_info(directory, info)
    return info


def write_reference_jsonl(path: Path, count: int, vocabulary: JointVocabulary) -> int:
    """The same documents as lines of the reference's pretraining shards; returns their tokens."""
    total = 0
    with path.open("w") as file:
        for document in token_documents(count, vocabulary):
            response = sum(s.end - s.start for s in document.spans if s.role == Role.RESPONSE)
            line = {"id": document.id, "task": document.task, "discrete_code": document.tokens.tolist()}
            file.write(json.dumps(line | {"response": line["discrete_code"][-response:]}) + "\n")
            total += len(document.tokens)
    return total


def write_media(directory: Path, count: int, seed: int = 0) -> Path:
    """A manifest of `count` documents, half captions of JPEG pictures, half transcripts of FLAC utterances."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with (directory / "train.jsonl").open("w") as manifest:
        for i in range(count):
            kind, name = ("image", f"{i}.jpg") if i % 2 else ("speech", f"{i}.flac")
            if i % 2:
                (directory / name).write_bytes(_jpeg(rng, _PICTURE))
            else:
                (directory / name).write_bytes(_flac(rng, _SOUND_SECONDS))
            turns = [[{kind: name}], [{"text": _TEXT.format(i)}]]
            line = {"id": str(i), "task": "caption" if i % 2 else "asr", "turns": turns}
            manifest.write(json.dumps(line) + "\n")
    return directory / "train.jsonl"


def _jpeg(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    """Blurred spots of colour."""
    out = io.BytesIO()
    spots = rng.integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(spots).resize(size).save(out, "JPEG", quality=85)
    return out.getvalue()


def _flac(rng: np.random.Generator, seconds: float) -> bytes:
    """A tone in noise."""
    time = np.arange(round(_SOUND_RATE * seconds)) / _SOUND_RATE
    tone = np.sin(2 * np.pi * rng.uniform(100, 300) * time) + 0.1 * rng.standard_normal(len(time))
    out = io.BytesIO()
    soundfile.write(out, (0.3 * tone).astype(np.float32), _SOUND_RATE, format="FLAC")
    return out.getvalue()


def _utterances(count: int, seed: int) -> Iterator[tuple[int, str, bytes]]:
    """(number, text, FLAC) of `count` short utterances."""
    rng = np.random.default_rng(seed)
    return ((i, _TEXT.format(i), _flac(rng, _SHORT_SECONDS)) for i in range(count))


def write_webdataset(directory: Path, count: int, seed: int = 0) -> Path:
    """A folder of tars of `count` small pictures, with text and facts, as img2dataset leaves them."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for first in range(0, count, _PER_FILE):
        with tarfile.open(directory / f"{first // _PER_FILE:05d}.tar", "w") as archive:
            for i in range(first, min(first + _PER_FILE, count)):
                text = _TEXT.format(i)
                facts = {"caption": text, "key": f"{i:09d}", "url": f"https://example.org/{i}.jpg", "status": "success"}
                data = {"jpg": _jpeg(rng, _SMALL_PICTURE), "txt": text.encode(), "json": json.dumps(facts).encode()}
                for suffix, content in data.items():
                    member = tarfile.TarInfo(f"{i:09d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return directory


def write_parquet(directory: Path, count: int, seed: int = 0) -> Path:
    """A folder of parquet files of `count` short utterances and their texts, as the hub has them. Needs pyarrow."""
    import pyarrow
    import pyarrow.parquet

    directory.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    for i, text, sound in _utterances(count, seed):
        rows.append({"audio": {"bytes": sound, "path": f"{i}.flac"}, "text": text})
        if len(rows) == _PER_FILE or i + 1 == count:
            table = pyarrow.Table.from_pylist(rows)
            pyarrow.parquet.write_table(table, directory / f"{i // _PER_FILE:05d}.parquet", row_group_size=100)
            rows.clear()
    return directory


def write_librispeech(directory: Path, count: int, seed: int = 0) -> Path:
    """A part of LibriSpeech of `count` short utterances."""
    part = directory / "train-clean-1"
    for i, text, sound in _utterances(count, seed):
        name = f"{i // _PER_FOLDER}-1-{i:06d}"
        folder = part / str(i // _PER_FOLDER) / "1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.flac").write_bytes(sound)
        with (folder / f"{i // _PER_FOLDER}-1.trans.txt").open("a") as listing:
            listing.write(f"{name} {text}\n")
    return part


def write_vctk(directory: Path, count: int, seed: int = 0) -> Path:
    """VCTK's layout of `count` short utterances."""
    for i, text, sound in _utterances(count, seed):
        speaker = f"p{i // _PER_FOLDER:05d}"
        for top, end, data in (("wav48_silence_trimmed", "_mic1.flac", sound), ("txt", ".txt", text.encode())):
            folder = directory / top / speaker
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{speaker}_{i:06d}{end}").write_bytes(data)
    return directory
