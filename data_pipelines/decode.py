"""One picture or utterance, from its file or bytes to samples: what the workers of build_shards do.

Neither JAX nor a codec is imported here, so that a process that only decodes starts in a fraction of a second.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from ar_omni_jax.tokenizers.image.preprocess import read_image
from ar_omni_jax.vocabulary import Modality
from data_pipelines.augment import Change
from data_pipelines.sound import SoundSegment, read_sound


@dataclasses.dataclass(frozen=True)
class DecodeRequest:
    """What to decode; plain data, so that it may go to another process.

    Attributes:
      document: id of the document that it stands in, for messages.
      modality: IMAGE or SPEECH.
      value: a path, an encoded file's bytes, an array, or a SoundSegment.
      size: side of the picture in pixels, or samples a second of the utterance.
      change: what is done to the utterance, if anything.
    """

    document: str
    modality: Modality
    value: Any
    size: int
    change: Change | None = None

    @property
    def name(self) -> str:
        """The medium, for messages."""
        if isinstance(self.value, str | SoundSegment):
            return str(self.value)
        return f"{self.modality.name.lower()} of the record"

    def __str__(self) -> str:
        return f"document {self.document!r}: {self.name}"


@dataclasses.dataclass(frozen=True)
class Decoded:
    """value: float32 [size, size, 3] or [T]; None where `error` says, naming the medium, why there is none.
    seconds: that it took."""

    value: np.ndarray | None
    error: str
    seconds: float


def decode(request: DecodeRequest) -> Decoded:
    """Reads, decodes and resizes or resamples one medium; for one that cannot be used the reason, not an exception."""
    start = time.perf_counter()
    try:
        if request.modality == Modality.IMAGE:
            value = read_image(request.value, request.size)
        else:
            value = read_sound(request.value, request.size)
            value = value if request.change is None else request.change(value, request.size)
    except (ValueError, OSError) as e:
        text = str(e) or type(e).__name__
        text = text if request.name in text else f"{request.name}: {text}"
        return Decoded(None, text, time.perf_counter() - start)
    return Decoded(value, "", time.perf_counter() - start)
