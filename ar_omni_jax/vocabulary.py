"""The joint vocabulary: which ids are text, image codes, speech codes and markers.

This is the only module that does arithmetic on token ids. The layout is data (ranges), so the same code
serves the published Chameleon/AR-Omni layout (65,536 ids) and the small default one. Every data set and every
checkpoint carries `fingerprint`; two that differ must never be mixed (`require_same`).
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
from collections.abc import Mapping

import numpy as np


class VocabularyError(ValueError):
    """An id, code or layout that does not belong to the vocabulary; the message says which and what to do."""


class Modality(enum.IntEnum):
    """What a token stands for. Markers and reserved ids are their own class, so that weights can spare them."""

    TEXT = 0
    IMAGE = 1
    SPEECH = 2
    MARKER = 3


MODALITY_NAMES = tuple(m.name.lower() for m in Modality)

# Markers every layout must place, by role in the templates (paper, Table 10).
MARKERS = ("bos", "pad", "eos", "unk", "boi", "eoi", "boa", "eoa", "eoh", "eom", "ins", "res")


@dataclasses.dataclass(frozen=True)
class IdRange:
    """Ids [start, start + count)."""

    start: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.count


@dataclasses.dataclass(frozen=True)
class JointVocabulary:
    """Ranges of ids for text pieces, image codes and speech codes, and the ids of the markers.

    Text piece p, image code c and speech code c live at `range.start + p` (or c). Ids in no range and not a
    marker are reserved: legal in a file, never produced. `image_grid` = (rows, columns) of one image's codes.

    Raises VocabularyError when ranges overlap, leave [0, size) or hit a marker.
    """

    name: str
    size: int
    text: IdRange
    image: IdRange
    speech: IdRange
    markers: Mapping[str, int]
    image_grid: tuple[int, int]

    def __post_init__(self):
        object.__setattr__(self, "markers", dict(self.markers))
        object.__setattr__(self, "image_grid", tuple(self.image_grid))
        missing = [m for m in MARKERS if m not in self.markers]
        if missing:
            raise VocabularyError(f"vocabulary {self.name!r} lacks the markers {missing}")
        if len(set(self.markers.values())) != len(self.markers):
            raise VocabularyError(f"vocabulary {self.name!r} gives two markers the same id: {self.markers}")
        owner = np.full(self.size, -1)
        for modality, ids in ((Modality.TEXT, self.text), (Modality.IMAGE, self.image), (Modality.SPEECH, self.speech)):
            if ids.start < 0 or ids.count < 0 or ids.stop > self.size:
                raise VocabularyError(f"vocabulary {self.name!r}: {modality.name} ids {ids} leave [0, {self.size})")
            if (owner[ids.start : ids.stop] >= 0).any():
                raise VocabularyError(f"vocabulary {self.name!r}: {modality.name} ids {ids} overlap another range")
            owner[ids.start : ids.stop] = modality
        for marker, token in self.markers.items():
            if not 0 <= token < self.size or owner[token] >= 0:
                raise VocabularyError(f"vocabulary {self.name!r}: marker {marker} = {token} is outside or in a range")

    def __hash__(self):
        return hash(self.fingerprint)

    # -- ids of markers ------------------------------------------------------------------------------------
    def marker(self, name: str) -> int:
        """Id of a marker such as "bos" or "eoa"; VocabularyError when there is none of that name."""
        if name not in self.markers:
            raise VocabularyError(f"no marker {name!r} in vocabulary {self.name!r}; it has {sorted(self.markers)}")
        return self.markers[name]

    @property
    def pad(self) -> int:
        return self.markers["pad"]

    @property
    def image_length(self) -> int:
        """Codes of one image: rows * columns."""
        return self.image_grid[0] * self.image_grid[1]

    # -- codes <-> ids -------------------------------------------------------------------------------------
    def range_of(self, modality: Modality) -> IdRange:
        """The id range of TEXT, IMAGE or SPEECH."""
        return {Modality.TEXT: self.text, Modality.IMAGE: self.image, Modality.SPEECH: self.speech}[Modality(modality)]

    def to_ids(self, modality: Modality, codes) -> np.ndarray:
        """Codes (text pieces, image or speech codes; any shape) -> joint ids int32, same shape."""
        codes = np.asarray(codes)
        ids = self.range_of(modality)
        bad = (codes < 0) | (codes >= ids.count)
        if bad.any():
            raise VocabularyError(
                f"{Modality(modality).name.lower()} code {int(codes[bad].flat[0])} is outside [0, {ids.count}) of "
                f"vocabulary {self.name!r}; was the data made with another tokenizer?"
            )
        return (codes + ids.start).astype(np.int32)

    def to_codes(self, modality: Modality, ids) -> np.ndarray:
        """Joint ids (any shape) -> codes int32 of that modality; VocabularyError for an id of another kind."""
        ids = np.asarray(ids)
        span = self.range_of(modality)
        bad = (ids < span.start) | (ids >= span.stop)
        if bad.any():
            raise VocabularyError(
                f"id {int(ids[bad].flat[0])} is not a {Modality(modality).name.lower()} id of vocabulary {self.name!r} "
                f"([{span.start}, {span.stop}))"
            )
        return (ids - span.start).astype(np.int32)

    # -- tables --------------------------------------------------------------------------------------------
    @functools.cached_property
    def modality_table(self) -> np.ndarray:
        """uint8 [size]: the Modality of each id (markers and reserved ids are MARKER)."""
        table = np.full(self.size, Modality.MARKER, np.uint8)
        for modality in (Modality.TEXT, Modality.IMAGE, Modality.SPEECH):
            ids = self.range_of(modality)
            table[ids.start : ids.stop] = modality
        return table

    def modality_of(self, ids) -> np.ndarray:
        """uint8 Modality of each id; VocabularyError for an id outside [0, size)."""
        return self.modality_table[self.check_ids(ids)]

    def mask(self, modality: Modality) -> np.ndarray:
        """bool [size]: True at the ids of that modality."""
        return self.modality_table == modality

    def check_ids(self, ids, where: str = "") -> np.ndarray:
        """`ids` as an array, or VocabularyError naming the first id outside [0, size) and `where` it stands."""
        ids = np.asarray(ids)
        bad = (ids < 0) | (ids >= self.size)
        if bad.any():
            at = int(np.flatnonzero(bad.ravel())[0])
            raise VocabularyError(
                f"{where + ': ' if where else ''}id {int(ids.ravel()[at])} at position {at} is outside vocabulary "
                f"{self.name!r} of {self.size} ids; was the data made with another vocabulary?"
            )
        return ids

    # -- identity ------------------------------------------------------------------------------------------
    def to_dict(self) -> dict:
        """Plain JSON-able layout; `from_dict` is its inverse."""
        return dataclasses.asdict(self) | {"image_grid": list(self.image_grid)}

    @classmethod
    def from_dict(cls, data: Mapping) -> JointVocabulary:
        fields = dict(data)
        for key in ("text", "image", "speech"):
            fields[key] = IdRange(**fields[key])
        return cls(**fields)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over the layout (not the name): equal layouts give equal fingerprints."""
        layout = {k: v for k, v in self.to_dict().items() if k != "name"}
        return hashlib.sha256(json.dumps(layout, sort_keys=True).encode()).hexdigest()[:16]

    def require_same(self, fingerprint: str, where: str) -> None:
        """VocabularyError, both fingerprints named, unless `fingerprint` (read from `where`) is this one's."""
        if fingerprint != self.fingerprint:
            raise VocabularyError(
                f"{where} was made with vocabulary {fingerprint}, but this run uses {self.name!r} = "
                f"{self.fingerprint}; use the tokenizers it was made with, or build the data again"
            )


def chameleon_vocabulary(image_grid: tuple[int, int] = (32, 32)) -> JointVocabulary:
    """The published 65,536-id layout of Chameleon with AR-Omni's use of the reserved ids.

    Begin of image is 8197 and end of image 8196: the published order, not a slip.
    """
    markers = {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "eoi": 8196, "boi": 8197, "eoa": 12820, "boa": 12821}
    markers |= {"eoh": 12830, "eom": 12831, "ins": 12840, "res": 12841}
    return JointVocabulary(
        name="chameleon",
        size=65536,
        text=IdRange(16384, 65536 - 16384),
        image=IdRange(4, 8192),
        speech=IdRange(8724, 4096),
        markers=markers,
        image_grid=image_grid,
    )


def compact_vocabulary(
    text: int, image: int, speech: int, image_grid: tuple[int, int], *, multiple: int = 128, name: str = "compact"
) -> JointVocabulary:
    """A small layout: markers, then image, speech and text ranges of the given sizes.

    The total is rounded up to `multiple` (reserved ids at the end) so that the table splits over a mesh.
    """
    markers = {marker: i for i, marker in enumerate(MARKERS)}
    start = 16
    image_ids = IdRange(start, image)
    speech_ids = IdRange(image_ids.stop, speech)
    text_ids = IdRange(speech_ids.stop, text)
    size = -(-text_ids.stop // multiple) * multiple
    return JointVocabulary(name, size, text_ids, image_ids, speech_ids, markers, image_grid)
