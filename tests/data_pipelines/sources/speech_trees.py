"""Small speech corpora as their makers unpack them, with real codecs, and what a build of them must give."""

import functools
import json
from pathlib import Path

import numpy as np
import soundfile

from ar_omni_jax.documents import Role
from ar_omni_jax.tokenizers.bundle import load_tokenizers
from ar_omni_jax.vocabulary import Modality
from data_pipelines import build_shards
from data_pipelines.shards import read_documents
from data_pipelines.sound import read_sound

RATE = 16000
FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".mp3": ("MP3", None), ".opus": ("OGG", "OPUS")}


@functools.cache
def tokenizers():
    return load_tokenizers("toyworld")


def wave(number, seconds=0.4, rate=RATE):
    """A buzz whose pitch and loudness follow `number`: float32 [T]."""
    t = np.arange(round(seconds * rate)) / rate
    pitch = 100 + 15 * number + 20 * np.sin(2 * np.pi * 3 * t + number)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    buzz = sum(np.sin(k * phase) / k for k in range(1, 9))
    return (0.2 * buzz * (1.2 + np.sin(2 * np.pi * 5 * t))).astype(np.float32)


def write_sound(path: Path, samples, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    kind, subtype = FORMATS[path.suffix]
    soundfile.write(path, samples, rate, format=kind, subtype=subtype)
    return path


def words(number):
    return f"THIS IS UTTERANCE NUMBER {number}"


# Each makes `count` utterances below `root`: (what --input names, {id: (transcript, sound)}, listing, line of number).
def make_common_voice(root, count):
    lines, expected = ["client_id\tpath\tsentence\tup_votes\tlocale"], {}
    for i in range(count):
        name = f"common_voice_en_{i}.mp3"
        expected[name] = (words(i), write_sound(root / "clips" / name, wave(i, rate=32000), 32000))
        lines.append(f"c0ffee\t{name}\t{words(i)}\t2\ten")
    listing = root / "validated.tsv"
    listing.write_text("\n".join(lines) + "\n")
    return root, expected, listing, 2


def make_librispeech(root, count):
    root, expected, listing = root / "train-clean-5", {}, None
    for i in range(count):
        folder = root / "19" / ("198" if i < 2 else "227")
        id = f"19-{folder.name}-{i:04d}"
        expected[id] = (words(i), write_sound(folder / f"{id}.flac", wave(i)))
        with (folder / f"19-{folder.name}.trans.txt").open("a") as file:
            file.write(f"{id} {words(i)}\n")
        listing = listing or Path(file.name)
    return root, expected, listing, 1


def make_mls(root, count):
    root, expected, lines = root / "train", {}, []
    for i in range(count):
        id = f"4800_1000{i % 2}_{i:06d}"
        suffix = ".flac" if i % 2 else ".opus"
        expected[id] = (words(i), write_sound(root / "audio/4800" / f"1000{i % 2}" / f"{id}{suffix}", wave(i)))
        lines.append(f"{id}\t{words(i)}\n")
    (root / "transcripts.txt").write_text("".join(lines))
    return root, expected, root / "transcripts.txt", 1


def make_ljspeech(root, count):
    lines, expected = [], {}
    for i in range(count):
        id = f"LJ001-{i:04d}"
        expected[id] = (words(i), write_sound(root / "wavs" / f"{id}.wav", wave(i, rate=22050), 22050))
        lines.append(f"{id}|as it was printed|{words(i)}" if i % 2 else f"{id}|{words(i)}|")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root, expected, root / "metadata.csv", 1


def make_vctk(root, count):
    expected, first = {}, None
    for i in range(count):
        speaker = "p225" if i < 2 else "p226"
        id = f"{speaker}_{i:03d}"
        folder = root / "wav48_silence_trimmed" / speaker
        expected[id] = (words(i), write_sound(folder / f"{id}_mic1.flac", wave(i, rate=48000), 48000))
        write_sound(folder / f"{id}_mic2.flac", wave(i + 50, rate=48000), 48000)
        text = root / "txt" / speaker / f"{id}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(f"{words(i)}\n")
        first = first or text
    return root, expected, first, 0


MAKERS = {
    "common_voice": make_common_voice,
    "librispeech": make_librispeech,
    "mls": make_mls,
    "ljspeech": make_ljspeech,
    "vctk": make_vctk,
}
SOURCE = {name: "librispeech" if name == "mls" else name for name in MAKERS}


def build(source, path, output, **options):
    return build_shards.build(source, path, output, tokenizers(), **{"quiet": True, "records_per_shard": 4} | options)


def check_shards(output, expected):
    """The shards hold these utterances in order: their words, and the codes of their sounds given directly."""
    vocabulary, text, speech = tokenizers().vocabulary, tokenizers().text, tokenizers().speech
    documents = list(read_documents(output, "train", vocabulary))
    assert [d.id for d in documents] == list(expected)
    for document in documents:
        transcript, sound = expected[document.id]
        heard, said = {"asr": (Role.PROMPT, Role.RESPONSE), "tts": (Role.RESPONSE, Role.PROMPT)}[document.task]
        (span,) = [s for s in document.spans if s.modality == Modality.SPEECH]
        sound = sound if not isinstance(sound, Path) else str(sound)
        codes = speech.encode(read_sound(sound, speech.sample_rate))
        found = vocabulary.to_codes(Modality.SPEECH, document.tokens[span.start : span.end])
        assert span.role == heard and np.array_equal(found, codes), document.id
        spans = [s for s in document.spans if s.modality == Modality.TEXT and s.role == said]
        pieces = [vocabulary.to_codes(Modality.TEXT, document.tokens[s.start : s.end]) for s in spans]
        assert transcript in " ".join(text.decode(p) for p in pieces)
    return documents


def accounts(output):
    """Every skipped record of a build."""
    found = [json.loads(path.read_text()) for path in sorted((output / ".build").glob("*.json"))]
    return [skipped for account in found for skipped in account["skipped"]]
