"""Every format that users have, from files of real codecs to packed rows, and from the rows back to equal tokens."""

import importlib.util
import itertools
import json
import tarfile

import dialogue_corpus as corpus
import numpy as np
import pytest
import speech_trees as trees
import token_corpus

from ar_omni_jax.tokenizers.bundle import load_tokenizers
from ar_omni_jax.vocabulary import Modality
from data_pipelines import build_shards
from data_pipelines.loader import make_loader
from data_pipelines.pack_shards import PackOptions, pack
from data_pipelines.shards import read_documents
from data_pipelines.sound import SoundSegment, read_sound
from data_pipelines.sources import SOURCES

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

PICTURES = ("png", "jpg", "webp")
SOUNDS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "mp3": ("MP3", None), "opus": ("OGG", "OPUS")}
IMAGE, SPEECH = Modality.IMAGE, Modality.SPEECH


def pictures(folder):
    """A picture file of each format."""
    folder.mkdir(exist_ok=True)
    return [corpus.picture(folder / f"p{i}.{suffix}", i) for i, suffix in enumerate(PICTURES)]


def sounds(folder):
    """A sound file of each codec."""
    folder.mkdir(exist_ok=True)
    return [
        corpus.sound(folder / f"s{i}.{suffix}", i, format, subtype)
        for i, (suffix, (format, subtype)) in enumerate(SOUNDS.items())
    ]


def media(folder):
    return [(IMAGE, path) for path in pictures(folder)] + [(SPEECH, path) for path in sounds(folder)]


# Each maker: folder -> (what --input names, media of each document as (modality, file or segment)).
def manifest(root):
    lines, expected = [], []
    for i, (kind, path) in enumerate(media(root / "media")):
        medium, words = {kind.name.lower(): f"media/{path.name}"}, {"text": f"words {i}"}
        for task in ("caption", "t2i") if kind == IMAGE else ("asr", "tts"):
            turns = [[medium], [words]] if task in ("caption", "asr") else [[words], [medium]]
            lines.append({"id": f"{task}{i}", "task": task, "turns": turns})
            expected.append([(kind, path)])
    return token_corpus.write_lines(root / "m.jsonl", lines), expected


def webdataset(root):
    files = media(root / "media")
    with tarfile.open(root / "0.tar", "w") as tar:
        for i, (_, path) in enumerate(files):
            (root / "media" / f"{i}.txt").write_text(f"words {i}")
            tar.add(path, f"{i:04d}{path.suffix}")
            tar.add(root / "media" / f"{i}.txt", f"{i:04d}.txt")
    return root / "0.tar", [[medium] for medium in files]


def hf_parquet(kind):
    def make(root):
        files = pictures(root / "media") if kind == IMAGE else sounds(root / "media")
        rows = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
        rows[0] = {"bytes": None, "path": f"media/{files[0].name}"}
        table = {"medium": rows, "text": [f"words {i}" for i in range(len(files))]}
        pq.write_table(pa.table(table), root / "x.parquet", row_group_size=2)
        return root / "x.parquet", [[(kind, path)] for path in files]

    return make


def tree(name):
    def make(root):
        path, expected, *_ = trees.MAKERS[name](root, 3)
        return path, [[(SPEECH, sound)] for _, sound in expected.values()]

    return make


def gigaspeech(root):
    trees.write_sound(root / "audio/a.opus", trees.wave(3, 4))
    segments = [
        {"sid": str(i), "begin_time": i, "end_time": i + 0.7, "text_tn": "A <COMMA> B", "subsets": ["{M}"]}
        for i in range(3)
    ]
    audios = [{"aid": "a", "path": "audio/a.opus", "segments": segments}]
    (root / "GigaSpeech.json").write_text(json.dumps({"audios": audios}))
    recording = str(root / "audio/a.opus")
    return f"{root}#M", [[(SPEECH, SoundSegment(recording, float(i), i + 0.7))] for i in range(3)]


def any_instruct(root):
    files, records, expected = media(root / "media"), [], []
    for i, ((kind, asked), (other, answered)) in enumerate(zip(files, files[::-1], strict=True)):
        question = {"role": "user", "message": "words", kind.name.lower(): f"media/{asked.name}"}
        answer = {"role": "assistant", "message": "words", other.name.lower(): f"media/{answered.name}"}
        records.append({"id": i, "conversation": [[question, answer]]})
        expected.append([(kind, asked), (other, answered)])
    (root / "c.json").write_text(json.dumps(records))
    return root / "c.json", expected


def voice_assistant(root):
    files = sounds(root / "media")
    rows = [{"question_audio": {"bytes": f.read_bytes(), "path": None}, "answer": f"words {f.name}"} for f in files]
    pq.write_table(pa.Table.from_pylist(rows), root / "v.parquet")
    return root / "v.parquet", [[(SPEECH, path)] for path in files]


def tfds(kind):
    def make(root):
        import tensorflow_datasets as tfds

        files = pictures(root / "media")[:2] if kind == IMAGE else sounds(root / "media")
        made = tfds.features
        audio = kind == SPEECH and made.Audio(file_format="wav", lazy_decode=True)
        records = [{"medium": p.read_bytes() if kind == IMAGE else p.open("rb"), "text": f"words {p}"} for p in files]
        tfds.dataset_builders.store_as_tfds_dataset(
            "every_format",
            "1.0.0",
            made.FeaturesDict({"medium": audio or made.Image(), "text": made.Text()}),
            {"train": list(enumerate(records))},
            data_dir=root,
            file_format="array_record",
            disable_shuffling=True,
        )
        return f"{root / 'every_format' / '1.0.0'}:train", [[(kind, path)] for path in files]

    return make


TEXTS = [
    {"text": "a red ball"},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
]


def text_jsonl(root):
    return token_corpus.write_lines(root / "t.jsonl", TEXTS), [[], []]


def text_parquet(root):
    pq.write_table(pa.Table.from_pylist(TEXTS[1:] * 2), root / "t.parquet")
    return root / "t.parquet", [[], []]


def installed(*names):
    return pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in names), reason="needs the extra [tfds]"
    )


CASES = {
    "manifest": manifest,
    "webdataset": webdataset,
    "hf_parquet-pictures": hf_parquet(IMAGE),
    "hf_parquet-sounds": hf_parquet(SPEECH),
    "common_voice": tree("common_voice"),
    "librispeech": tree("librispeech"),
    "librispeech-mls": tree("mls"),
    "ljspeech": tree("ljspeech"),
    "vctk": tree("vctk"),
    "gigaspeech": gigaspeech,
    "any_instruct": any_instruct,
    "voice_assistant": voice_assistant,
    "tfds-pictures": tfds(IMAGE),
    "tfds-sounds": tfds(SPEECH),
    "text_jsonl": text_jsonl,
    "text_parquet": text_parquet,
}
MARKS = {
    "tfds-pictures": installed("tensorflow_datasets"),
    "tfds-sounds": installed("tensorflow_datasets", "tensorflow"),
}


@pytest.fixture(scope="module")
def tokenizers():
    return load_tokenizers()


def packed_documents(directory):
    """int32 ids of each document in the rows that training is given."""
    with make_loader({"path": directory}, split="train", global_batch=2, seed=0, one_pass=True) as loader:
        for batch in loader:
            for tokens, segments in zip(batch["tokens"], batch["segment_ids"], strict=True):
                yield from (tokens[segments == number] for number in range(1, segments.max() + 1))


def codes_of(tokens, vocabulary):
    """((modality, codes), ...) of the media in a sequence, by nothing but its ids."""
    kinds = vocabulary.modality_of(tokens)
    borders = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(tokens)]
    runs = [(Modality(int(kinds[a])), tokens[a:b]) for a, b in itertools.pairwise(borders)]
    whole = [(kind, vocabulary.to_codes(kind, ids)) for kind, ids in runs if kind in (IMAGE, SPEECH)]
    return tuple((kind, tuple(codes.tolist())) for kind, codes in whole)


def direct(kind, value, tokenizers):
    """The codec's own codes of a file."""
    if kind == IMAGE:
        return kind, tuple(corpus.direct_codes(tokenizers, kind, str(value)))
    wave = read_sound(value if not hasattr(value, "suffix") else str(value), tokenizers.speech.sample_rate)
    return kind, tuple(np.asarray(tokenizers.speech.encode_batch([wave])[0]).tolist())


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in CASES])
def test_media_come_back_from_packed_rows(name, tmp_path, tokenizers):
    path, expected = CASES[name](tmp_path)
    build_shards.build(name.split("-")[0], path, tmp_path / "shards", tokenizers, quiet=True, records_per_shard=3)
    written = list(read_documents(tmp_path / "shards", "train", tokenizers.vocabulary))
    assert len(written) == len(expected)
    pack(tmp_path / "shards", tmp_path / "packed", PackOptions(2 * max(len(d.tokens) for d in written)))
    found = [document.tolist() for document in packed_documents(tmp_path / "packed")]
    assert sorted(found) == sorted(d.tokens.tolist() for d in written)
    wanted = sorted(tuple(direct(*medium, tokenizers) for medium in document) for document in expected)
    assert sorted(codes_of(np.array(d), tokenizers.vocabulary) for d in found) == wanted


def test_tokenized_documents_come_back_from_packed_rows(tmp_path):
    records, _ = token_corpus.pretraining_records()
    token_corpus.write_lines(tmp_path / "r.jsonl", records)
    rows = [{"input_ids": r["discrete_code"], "labels": r["discrete_code"]} for r in records]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    for source, file in (("reference_jsonl", "r.jsonl"), ("reference_parquet", "r.parquet")):
        token_corpus.build(source, tmp_path / file, tmp_path / source)
        pack(tmp_path / source, tmp_path / f"{source}-packed", PackOptions(64))
        found = sorted(document.tolist() for document in packed_documents(tmp_path / f"{source}-packed"))
        assert found == sorted(r["discrete_code"] for r in records)


def test_no_source_is_forgotten():
    assert {name.split("-")[0] for name in CASES} | {"reference_jsonl", "reference_parquet"} == set(SOURCES)
