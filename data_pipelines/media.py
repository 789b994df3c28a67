"""Images and utterances of documents -> codes: decoded in threads, encoded in batches, once a file.

The cache lives as long as the encoder. `build_shards` makes one encoder a shard: batches, and with them the last
bits of floating point, then depend on the shard's own records only, so that a run that was killed and started
again writes the same bytes as one that was not.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ar_omni_jax.documents import Document, Part
from ar_omni_jax.tokenizers.bundle import Tokenizers
from ar_omni_jax.tokenizers.image.preprocess import read_image
from ar_omni_jax.vocabulary import Modality
from data_pipelines.augment import Augmenter, Change
from data_pipelines.sound import SoundSegment, read_sound
from data_pipelines.stage_clock import StageClock

# A window is what is decoded ahead and encoded together.
WINDOW_DOCUMENTS = 1024
WINDOW_BYTES = 512 << 20  # of media, encoded and decoded, about; two windows are in memory at a time
_SECONDS_ASSUMED = 15  # of an utterance, for that estimate


@dataclasses.dataclass(frozen=True)
class MediaError:
    """Why a medium gave no codes. `kind`: short, for counting; `message`: names the medium."""

    kind: str
    message: str


@dataclasses.dataclass(frozen=True)
class Codecs:
    """What the encoder needs of the tokenizers; `read_*` raise ValueError or OSError for unusable media.

    read_image: path, bytes or array -> float32 [H, W, 3]; encode_images: float32 [B, H, W, 3] -> int32 [B, n];
    read_speech: the same or a SoundSegment, and the change to make or None -> float32 [T]; encode_speech: list of
    float32 [T] -> list of int32 [n]; *_bytes: of one decoded.
    """

    read_image: Callable[[Any], np.ndarray]
    encode_images: Callable[[np.ndarray], np.ndarray]
    image_bytes: Callable[[], int]
    read_speech: Callable[[Any, Change | None], np.ndarray]
    encode_speech: Callable[[list[np.ndarray]], Sequence[np.ndarray]]
    speech_bytes: Callable[[], int]


def codecs_of(tokenizers: Tokenizers) -> Codecs:
    """Codecs of the tokenizers; each one's weights are read when the first medium of its kind comes."""

    def read_speech(value: Any, change: Change | None) -> np.ndarray:
        rate = tokenizers.speech.sample_rate
        wave = read_sound(value, rate)
        return wave if change is None else change(wave, rate)

    def speech_bytes() -> int:
        return 4 * tokenizers.speech.sample_rate * _SECONDS_ASSUMED

    return Codecs(
        read_image=lambda value: read_image(value, tokenizers.image.image_size),
        encode_images=lambda pixels: tokenizers.image.encode(pixels),
        image_bytes=lambda: 12 * tokenizers.image.image_size**2,
        read_speech=read_speech,
        encode_speech=lambda waves: tokenizers.speech.encode_batch(waves),
        speech_bytes=speech_bytes,
    )


@dataclasses.dataclass(frozen=True)
class _Medium:
    """One image or utterance to be encoded. key: equal for what has equal codes."""

    part: Part
    key: Any
    change: Change | None = None


class MediaEncoder:
    """Codes of the media of documents, in windows. Not thread-safe; owns no thread: give it a pool.

    augmenter: alters speech of user turns; speech of the assistant, which a model is to say, is never altered.
    clock: counts the seconds of decoding, of waiting for it, and of the codecs.
    """

    def __init__(
        self,
        codecs: Codecs,
        pool: concurrent.futures.Executor,
        augmenter: Augmenter | None = None,
        clock: StageClock | None = None,
    ):
        self._pool, self._augmenter, self._clock = pool, augmenter, clock or StageClock()
        timed = self._clock.timed
        self._codecs = dataclasses.replace(
            codecs,
            read_image=timed("decode", codecs.read_image),
            read_speech=timed("decode", codecs.read_speech),
            encode_images=timed("codec", codecs.encode_images),
            encode_speech=timed("codec", codecs.encode_speech),
        )
        self._known: dict[Any, np.ndarray | MediaError] = {}

    def windows(self, documents: Iterable[Document | None]) -> Iterator[list[list[np.ndarray | MediaError]]]:
        """For each window of documents, in order: for each document the codes (or error) of each medium.

        None stands for a record without document and gives []. The next window is decoded meanwhile.
        """
        before = None
        for window in self._split(documents):
            decoding = self._start(window)
            if before is not None:
                yield self._finish(*before)
            before = window, decoding
        if before is not None:
            yield self._finish(*before)

    def _split(self, documents: Iterable[Document | None]) -> Iterator[list[list[_Medium]]]:
        window: list[list[_Medium]] = []
        size = 0
        for document in documents:
            media = self._media(document) if document is not None else []
            window.append(media)
            for part in (medium.part for medium in media):
                image = part.modality == Modality.IMAGE
                size += self._codecs.image_bytes() if image else self._codecs.speech_bytes()
                size += len(part.value) if isinstance(part.value, bytes) else 0
            if len(window) >= WINDOW_DOCUMENTS or size >= WINDOW_BYTES:
                yield window
                window, size = [], 0
        if window:
            yield window

    def _media(self, document: Document) -> list[_Medium]:
        """The document's media in stream order."""
        parts = [(turn.role, p) for turn in document.turns for p in turn.parts if p.modality != Modality.TEXT]
        media = []
        for number, (role, part) in enumerate(parts):
            key, change = _key(part), None
            if self._augmenter is not None and role == "user" and part.modality == Modality.SPEECH:
                change = self._augmenter.change(document.id, number)
            if change is not None:
                key = (*key, document.id, number)
            media.append(_Medium(part, key, change))
        return media

    def _start(self, window: list[list[_Medium]]) -> dict[Any, tuple[Part, concurrent.futures.Future]]:
        """Submits what is neither encoded nor being decoded."""
        decoding: dict[Any, tuple[Part, concurrent.futures.Future]] = {}
        for medium in (medium for media in window for medium in media):
            part, key = medium.part, medium.key
            if key in self._known or key in decoding:
                continue
            if part.modality == Modality.IMAGE:
                future = self._pool.submit(self._codecs.read_image, part.value)
            else:
                future = self._pool.submit(self._codecs.read_speech, part.value, medium.change)
            decoding[key] = (part, future)
        return decoding

    def _finish(self, window: list[list[_Medium]], decoding) -> list[list[np.ndarray | MediaError]]:
        ready: dict[Modality, list[tuple[Any, np.ndarray]]] = {Modality.IMAGE: [], Modality.SPEECH: []}
        for key, (part, future) in decoding.items():
            try:
                with self._clock.stage("wait"):
                    value = future.result()
            except (ValueError, OSError) as e:
                self._known[key] = MediaError(f"unusable {part.modality.name.lower()}", _message(part, e))
                continue
            if key not in self._known:  # the window before may have had it too
                ready[part.modality].append((key, value))
        self._encode(ready[Modality.IMAGE], lambda pixels: self._codecs.encode_images(np.stack(pixels)))
        self._encode(ready[Modality.SPEECH], self._codecs.encode_speech)
        return [[self._known[medium.key] for medium in media] for media in window]

    def _encode(self, items: list[tuple[Any, np.ndarray]], encode: Callable) -> None:
        """All at once: the codecs cut what they are given into batches that suit them."""
        rows = encode([value for _, value in items]) if items else []
        for (key, _), row in zip(items, rows, strict=True):
            self._known[key] = np.asarray(row, np.int32)


def _key(part: Part) -> tuple[Modality, Any]:
    """Paths and segments by name, bytes and arrays by content."""
    value = part.value
    if isinstance(value, np.ndarray):
        value = (value.shape, value.dtype.str, hashlib.sha256(np.ascontiguousarray(value).tobytes()).digest())
    elif isinstance(value, bytes | bytearray | memoryview):
        value = hashlib.sha256(value).digest()
    return part.modality, value


def _message(part: Part, error: Exception) -> str:
    text = str(error) or type(error).__name__
    name = (
        str(part.value) if isinstance(part.value, str | SoundSegment) else f"{part.modality.name.lower()} of the record"
    )
    return text if name in text else f"{name}: {text}"
