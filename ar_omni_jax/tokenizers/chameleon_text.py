"""Chameleon's text tokenizer: a byte-level BPE in HF `tokenizers` JSON whose ids are those of the joint vocabulary.

The file names every one of the 65,536 ids, so it can be held against the published layout: `read_published` does so
without the `tokenizers` package, which is needed only to encode and decode.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ar_omni_jax.tokenizers.text import TokenizerError, require_utf8
from ar_omni_jax.vocabulary import JointVocabulary, Modality, chameleon_vocabulary

FILE = "text_tokenizer.json"
SHOWN = 10
_NAMES = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "eoi": "<eoss>", "boi": "<racm3:break>"}
# Reserved ids that later users of the vocabulary renamed; the plain name is as good.
_ALIASES = {"boa": "<boa>", "eoa": "<eoa>", "eoh": "<eoh>", "eom": "<eom>", "ins": "<-Ins->", "res": "<-Res->"}
_PLACEHOLDER = ("<reserved08707>", "<image>")  # HF's processor renames it
_IMAGE_NAME = re.compile(r"IMGIMG([A-J]+)Z")
_RESERVED_OFFSET = 4  # <reservedNNNNN> has the id N + 4


def _token_names(record: Mapping[str, Any], source: str) -> dict[int, str]:
    """{id: name} of a tokenizer JSON's model and added tokens. TokenizerError for another file or a clash."""
    try:
        pairs = [(str(name), int(i)) for name, i in record["model"]["vocab"].items()]
        pairs += [(str(t["content"]), int(t["id"])) for t in record.get("added_tokens") or ()]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise TokenizerError(f"{source}: not a BPE tokenizer of HF tokenizers ({e!r}); copy Chameleon's {FILE}") from e
    names: dict[int, str] = {}
    for name, i in pairs:
        if names.setdefault(i, name) != name:
            raise TokenizerError(f"{source}: id {i} is both {names[i]!r} and {name!r}; copy the file again")
    return names


def _expected(vocabulary: JointVocabulary) -> dict[int, tuple[str, ...]]:
    """{id: allowed names} of every id that is neither text nor an image code."""
    fixed = {vocabulary.marker(m): (name,) for m, name in _NAMES.items()}
    outside = np.flatnonzero(~(vocabulary.mask(Modality.TEXT) | vocabulary.mask(Modality.IMAGE))).tolist()
    allowed = {i: fixed.get(i) or (f"<reserved{i - _RESERVED_OFFSET:05d}>",) for i in outside}
    for marker, name in _ALIASES.items():
        allowed[vocabulary.marker(marker)] += (name,)
    return {i: _PLACEHOLDER if names == _PLACEHOLDER[:1] else names for i, names in allowed.items()}


def _image_code(name: str) -> int:
    """IMGIMG<digits as letters>Z -> code, -1 for any other name."""
    match = _IMAGE_NAME.fullmatch(name)
    return int(match[1].translate(str.maketrans("ABCDEFGHIJ", "0123456789"))) if match else -1


def check_tokens(names: Mapping[int, str], vocabulary: JointVocabulary, source: str) -> None:
    """TokenizerError naming every id whose token is not what the published layout has there."""
    wrong: dict[int, str] = {}
    for i, allowed in _expected(vocabulary).items():
        if names.get(i) not in allowed:
            wrong[i] = f"must be {' or '.join(allowed)}"
    codes = np.arange(vocabulary.image.count)
    for code, i in zip(codes.tolist(), vocabulary.to_ids(Modality.IMAGE, codes).tolist(), strict=True):
        if _image_code(names.get(i, "")) != code:
            wrong[i] = f"must be the name of image code {code} (IMGIMG, its digits as letters, Z)"
    for i in np.flatnonzero(vocabulary.mask(Modality.TEXT)).tolist():
        name = names.get(i, "")
        if not name or name in _NAMES.values() or _image_code(name) >= 0:
            wrong[i] = "must be a text token"
    wrong |= {i: f"is outside the {vocabulary.size} ids" for i in names if not 0 <= i < vocabulary.size}
    if wrong:
        lines = [f"id {i} {f'is {names[i]!r}' if i in names else 'has no token'}, {wrong[i]}" for i in sorted(wrong)]
        more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise TokenizerError(
            f"{source} is not the text tokenizer of the published vocabulary: {'; '.join(lines[:SHOWN])}{more}. Copy "
            f"Chameleon's {FILE}; with another tokenizer a published model would read other words"
        )


@dataclasses.dataclass(frozen=True)
class PublishedText:
    """A checked file: its content, the layout that it fits, and the identity of its encodings."""

    source: str
    record: Mapping[str, Any]
    vocabulary: JointVocabulary
    identity: str


def read_published(path: str | os.PathLike, image_grid: tuple[int, int] = (32, 32)) -> PublishedText:
    """The file's JointVocabulary and identity, every id checked; TokenizerError for a file that is not Chameleon's."""
    path = Path(path)
    if not path.is_file():
        raise TokenizerError(f"{path}: no such file; copy tokenizer/{FILE} of a Chameleon checkpoint there")
    data = path.read_bytes()
    try:
        record = json.loads(data)
    except ValueError as e:
        raise TokenizerError(f"{path}: malformed JSON ({e}); copy the file again") from e
    vocabulary = chameleon_vocabulary(image_grid)
    check_tokens(_token_names(record, str(path)), vocabulary, str(path))
    return PublishedText(str(path), record, vocabulary, f"chameleon:{hashlib.sha256(data).hexdigest()[:12]}")


def _plain_text_only(record: Mapping[str, Any], vocabulary: JointVocabulary) -> dict[str, Any]:
    """The JSON of the same BPE without what turns text into anything but text.

    Special tokens are not looked for (a user who types "</s>" ends nothing), `<s>` is not put in front, and nothing is
    cut, padded or drawn at random.
    """
    is_text = vocabulary.mask(Modality.TEXT)
    kept = [token for token in record.get("added_tokens") or () if is_text[int(token["id"])]]
    changed = {"added_tokens": kept, "post_processor": None, "truncation": None, "padding": None}
    return {**record, **changed, "model": {**record["model"], "dropout": None}}


class ChameleonTextTokenizer:
    """`TextCodec` of the published text ids: piece p is the token of joint id `vocabulary.to_ids(TEXT, p)`.

    Encodings equal those of HF `tokenizers` for text without the names of special tokens; such a name is text here.
    """

    def __init__(self, published: PublishedText):
        try:
            from tokenizers import Tokenizer
        except ImportError as e:
            raise TokenizerError(
                f'{published.source} needs the "tokenizers" package ({e}); install it with pip install tokenizers, or '
                'with pip install "ar_omni_jax[torch]"'
            ) from e
        self.vocabulary, self.identity = published.vocabulary, published.identity
        self.size = self.vocabulary.text.count
        self._source = published.source
        try:
            self._bpe = Tokenizer.from_str(json.dumps(_plain_text_only(published.record, self.vocabulary)))
        except Exception as e:  # the package raises plain Exception for a malformed file
            raise TokenizerError(f"{published.source}: HF tokenizers refuses it ({e}); copy the file again") from e
        self._probe()

    @classmethod
    def load(cls, path: str | os.PathLike) -> ChameleonTextTokenizer:
        """From Chameleon's `text_tokenizer.json`, checked."""
        return cls(read_published(path))

    def _probe(self) -> None:
        """TokenizerError when characters get lost, a warning when white space or accents come back changed."""
        # Every byte that UTF-8 can hold stands in one of these characters.
        leads = [*range(0x21, 0x800), *range(0x800, 0xD000, 0x800), 0xE000, *range(0x10000, 0x110000, 0x10000)]
        for c in filter(lambda c: not c.isspace(), map(chr, leads)):
            back = self.decode(self.encode(c))
            if not back.strip(" ") or "\ufffd" in back:
                raise TokenizerError(
                    f"{self._source}: {c!r} (U+{ord(c):04X}) comes back as {back!r}: the model is no byte-level BPE "
                    f"with all 256 bytes; copy Chameleon's {FILE}"
                )
        text = "  \u212bx  \n"
        if (back := self.decode(self.encode(text))) != text:
            warnings.warn(f"{self._source} changes its input: {text!r} comes back as {back!r}", stacklevel=3)

    def encode(self, text: str) -> np.ndarray:
        """str -> int32 pieces [n]; TokenizerError for a str without UTF-8 form (a lone surrogate)."""
        require_utf8(text)
        ids = np.array(self._bpe.encode(text, add_special_tokens=False).ids, np.int64)
        return self.vocabulary.to_codes(Modality.TEXT, ids)

    def _ids(self, pieces: Sequence[int] | np.ndarray) -> list[int]:
        pieces = np.asarray(pieces, np.int64).reshape(-1)
        if pieces.size and not 0 <= pieces.min() <= pieces.max() < self.size:
            raise TokenizerError(f"text piece {pieces.min()} or {pieces.max()} is outside [0, {self.size})")
        return self.vocabulary.to_ids(Modality.TEXT, pieces).tolist()

    def decode(self, pieces: Sequence[int] | np.ndarray) -> str:
        """Pieces -> str. Bytes that are no UTF-8 (a text cut inside a character) become U+FFFD."""
        return self._bpe.decode(self._ids(pieces), skip_special_tokens=False)

    def pieces(self, text: str) -> list[str]:
        """The pieces of `text` as strings, for people."""
        return [self._bpe.id_to_token(i) for i in self._ids(self.encode(text))]
