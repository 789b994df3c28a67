"""Small pictures and sounds in real file formats, the toy world's tokenizers, and a comparison of codes with shards."""

import functools
import io

import numpy as np
import soundfile
from PIL import Image

from ar_omni_jax.tokenizers.bundle import load_tokenizers
from ar_omni_jax.tokenizers.image.preprocess import read_image
from ar_omni_jax.tokenizers.speech.audio import read_audio
from ar_omni_jax.vocabulary import Modality
from data_pipelines import build_shards
from data_pipelines.shards import read_documents

toy = functools.cache(lambda: load_tokenizers("toyworld"))


@functools.cache
def picture(number: int, format: str = "PNG") -> bytes:
    """An encoded picture of 20 x 16 pixels; PNG, JPEG or WEBP."""
    small = np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((20, 16)).save(out, format)
    return out.getvalue()


@functools.cache
def sound(number: int, format: str = "WAV", subtype: str | None = None) -> bytes:
    """A second of an encoded tone at 24 kHz; WAV, FLAC, MP3, or OGG with subtype OPUS."""
    time = np.arange(24000) / 24000
    tone = 0.3 * np.sin(2 * np.pi * (200 + 50 * number) * time) * np.sin(np.pi * time)
    out = io.BytesIO()
    soundfile.write(out, tone.astype(np.float32), 24000, format=format, subtype=subtype)
    return out.getvalue()


@functools.cache
def bomb() -> bytes:
    """A small PNG file that says it has 30000 x 30000 pixels."""
    out = io.BytesIO()
    Image.new("1", (30000, 30000)).save(out, "PNG")
    return out.getvalue()


def codes_of(modality: Modality, data) -> np.ndarray:
    """The tokenizer's own codes of an encoded medium."""
    if modality == Modality.IMAGE:
        return toy().image.encode(read_image(data, toy().image.image_size)[None])[0]
    return toy().speech.encode_batch([read_audio(data, toy().speech.sample_rate)])[0]


def build(source, path, output, **options):
    return build_shards.build(source, path, output, toy(), **({"quiet": True, "records_per_shard": 4} | options))


def codes_in_shards(directory, split="train") -> dict[str, tuple[str, np.ndarray]]:
    """{document's id: (task, codes of its one medium)}."""
    vocabulary, out = toy().vocabulary, {}
    for doc in read_documents(directory, split, vocabulary):
        for span in doc.spans:
            if span.modality in (Modality.IMAGE, Modality.SPEECH):
                out[doc.id] = doc.task, vocabulary.to_codes(span.modality, doc.tokens[span.start : span.end])
    return out


def records(source):
    return list(source.read(0, len(source)))


def reasons(source) -> list[str]:
    """The errors of the records that cannot be used."""
    return [record.error for record in records(source) if record.document is None]


def texts(record) -> list[str]:
    return [p.value for t in record.document.turns for p in t.parts if p.modality == Modality.TEXT]
