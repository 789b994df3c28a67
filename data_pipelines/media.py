"""Images and utterances of documents -> codes: decoded by a pool, encoded in batches, once a file.

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
from ar_omni_jax.vocabulary import Modality
from data_pipelines.augment import Augmenter, Change
from data_pipelines.decode import DecodeRequest, decode
from data_pipelines.sound import seconds_of
from data_pipelines.stage_clock import StageClock

# A window is what is decoded ahead and encoded together.
WINDOW_DOCUMENTS = 1024
WINDOW_BYTES = 512 << 20  # of media, encoded and decoded, about; two windows are in memory at a time
_SECONDS_ASSUMED = 15  # of an utterance, at least, for that estimate


@dataclasses.dataclass(frozen=True)
class MediaError:
    """Why a medium gave no codes. `kind`: short, for counting; `message`: names the medium."""

    kind: str
    message: str


@dataclasses.dataclass(frozen=True)
class Codecs:
    """What the encoder needs of the tokenizers.

    image_size: pixels of a picture's side; encode_images: float32 [B, size, size, 3] -> int32 [B, n];
    sample_rate: Hz; encode_speech: list of float32 [T] -> list of int32 [n].
    """

    image_size: Callable[[], int]
    encode_images: Callable[[np.ndarray], np.ndarray]
    sample_rate: Callable[[], int]
    encode_speech: Callable[[list[np.ndarray]], Sequence[np.ndarray]]

    def size_of(self, modality: Modality) -> int:
        """`DecodeRequest.size` of a medium."""
        return self.image_size() if modality == Modality.IMAGE else self.sample_rate()

    def bytes_of(self, part: Part) -> int:
        """Of one medium, about: decoded, and encoded if it is in memory. Depends on nothing but the medium."""
        size, value = self.size_of(part.modality), part.value
        held = len(value) if isinstance(value, bytes) else value.nbytes if isinstance(value, np.ndarray) else 0
        if part.modality == Modality.IMAGE:
            return held + 12 * size**2
        return held + 4 * int(size * max(_SECONDS_ASSUMED, seconds_of(value, size)))


def codecs_of(tokenizers: Tokenizers) -> Codecs:
    """Codecs of the tokenizers; each one's weights are read when the first medium of its kind comes."""
    return Codecs(
        image_size=lambda: tokenizers.image.image_size,
        encode_images=lambda pixels: tokenizers.image.encode(pixels),
        sample_rate=lambda: tokenizers.speech.sample_rate,
        encode_speech=lambda waves: tokenizers.speech.encode_batch(waves),
    )


@dataclasses.dataclass(frozen=True)
class _Medium:
    """One image or utterance to be encoded. document: its id; key: equal for what has equal codes."""

    document: str
    part: Part
    key: Any
    change: Change | None = None


_Decoding = dict[Any, tuple[Modality, concurrent.futures.Future]]  # key: what is being decoded


class MediaEncoder:
    """Codes of the media of documents, in windows. Not thread-safe; owns no thread: give it a pool, of threads or
    processes, which calls `decode`.

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
            encode_images=timed("codec", codecs.encode_images),
            encode_speech=timed("codec", codecs.encode_speech),
        )
        self._known: dict[Any, np.ndarray | MediaError] = {}
        self._asked = False  # the pool, for anything

    def windows(self, documents: Iterable[Document | None]) -> Iterator[list[list[np.ndarray | MediaError]]]:
        """For each window of documents, in order: for each document the codes (or error) of each medium.

        None stands for a record without document and gives []. The next window is decoded meanwhile.
        """
        before = None
        for window in self._split(documents):
            if before is not None:
                yield self._finish(*before)
            before = window
        if before is not None:
            yield self._finish(*before)

    def _split(self, documents: Iterable[Document | None]) -> Iterator[tuple[list[list[_Medium]], _Decoding]]:
        """Windows, and what is being decoded for them; each medium is submitted as soon as its document is read."""
        window: list[list[_Medium]] = []
        decoding: _Decoding = {}
        size = 0
        for document in documents:
            media = self._media(document) if document is not None else []
            window.append(media)
            for medium in media:
                self._submit(medium, decoding)
                size += self._codecs.bytes_of(medium.part)
            if len(window) >= WINDOW_DOCUMENTS or size >= WINDOW_BYTES:
                yield window, decoding
                window, decoding, size = [], {}, 0
        if window:
            yield window, decoding

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
            media.append(_Medium(document.id, part, key, change))
        return media

    def _submit(self, medium: _Medium, decoding: _Decoding) -> None:
        """Adds to `decoding` what is neither encoded nor being decoded."""
        if medium.key in self._known or medium.key in decoding:
            return
        if not self._asked:
            self._pool.submit(bool)  # processes start while the codec's weights are read, for its size
            self._asked = True
        modality, value = medium.part.modality, medium.part.value
        value = bytes(value) if isinstance(value, bytearray | memoryview) else value  # can be sent
        request = DecodeRequest(medium.document, modality, value, self._codecs.size_of(modality), medium.change)
        decoding[medium.key] = (modality, self._pool.submit(decode, request))

    def _finish(self, window: list[list[_Medium]], decoding: _Decoding) -> list[list[np.ndarray | MediaError]]:
        ready: dict[Modality, list[tuple[Any, np.ndarray]]] = {Modality.IMAGE: [], Modality.SPEECH: []}
        for key, (modality, future) in decoding.items():
            with self._clock.stage("wait"):
                found = future.result()
            self._clock.add("decode", found.seconds)
            if found.value is None:
                self._known[key] = MediaError(f"unusable {modality.name.lower()}", found.error)
                continue
            if key not in self._known:  # the window before may have had it too
                ready[modality].append((key, found.value))
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
