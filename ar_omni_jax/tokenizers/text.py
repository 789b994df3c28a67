"""Text tokenizers: what the pipelines ask of one (`TextCodec`), and the default one (SentencePiece)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

_SPACE = "\u2581"  # SentencePiece writes a space as this character; a literal one must go through its bytes


class TokenizerError(ValueError):
    """A tokenizer file, text or piece that cannot be used; the message says which and what to do."""


class TextCodec(Protocol):
    """A reversible text tokenizer. `decode(encode(text)) == text` for every str that has a UTF-8 form."""

    size: int  # pieces are 0 .. size - 1
    identity: str  # changes whenever an encoding may

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, pieces: Sequence[int] | np.ndarray) -> str: ...


def require_utf8(text: str) -> None:
    """TokenizerError for a str without UTF-8 form (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise TokenizerError(
            f"text has the lone surrogate {text[e.start]!r} at position {e.start}; it was decoded with the wrong "
            "encoding, read its file as UTF-8"
        ) from e


class TextTokenizer:
    """A SentencePiece model with byte fallback and no normalization; nothing is added to or taken from the text.

    Raises TokenizerError for a model that normalizes, adds a leading space, or lacks byte fallback: with such a
    model texts would not come back as they went in.
    """

    def __init__(self, model: bytes, source: str = "text tokenizer"):
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as e:
            raise TokenizerError(f"{source}: not a SentencePiece model ({e}); copy or train it again") from e
        self.size = self._processor.get_piece_size()
        self.identity = f"sentencepiece:{hashlib.sha256(model).hexdigest()[:12]}"
        bytes_ = [self._processor.piece_to_id(f"<0x{b:02X}>") for b in _SPACE.encode()]
        self._space_pieces = bytes_
        if not all(self._processor.is_byte(p) for p in bytes_):
            raise TokenizerError(f"{source}: the model has no byte fallback; train it with byte_fallback=True")
        probe = "  \u212bx  "
        if self.decode(self.encode(probe)) != probe:
            raise TokenizerError(
                f"{source}: the model changes its input ({probe!r} comes back as {self.decode(self.encode(probe))!r}); "
                "train it with normalization_rule_name=identity, remove_extra_whitespaces and add_dummy_prefix False"
            )

    @classmethod
    def load(cls, path: str | os.PathLike) -> TextTokenizer:
        """From a `.model` file."""
        path = Path(path)
        if not path.is_file():
            raise TokenizerError(
                f"{path}: no such file; make it with python -m ar_omni_jax.tokenizers.train_text --help"
            )
        return cls(path.read_bytes(), str(path))

    def encode(self, text: str) -> np.ndarray:
        """str -> int32 pieces [n]; TokenizerError for a str without UTF-8 form (a lone surrogate)."""
        require_utf8(text)
        pieces: list[int] = []
        for i, run in enumerate(text.split(_SPACE)):
            if i:
                pieces += self._space_pieces
            pieces += self._processor.encode(run)
        return np.array(pieces, np.int32)

    def decode(self, pieces: Sequence[int] | np.ndarray) -> str:
        """Pieces -> str. Bytes that are no UTF-8 (a text cut inside a character) become U+FFFD."""
        pieces = np.asarray(pieces, np.int64).reshape(-1)
        if pieces.size and not 0 <= pieces.min() <= pieces.max() < self.size:
            raise TokenizerError(f"text piece {pieces.min()} or {pieces.max()} is outside [0, {self.size})")
        return self._processor.decode(pieces.tolist())

    def pieces(self, text: str) -> list[str]:
        """The pieces of `text` as strings, for people."""
        return [self._processor.id_to_piece(int(p)) for p in self.encode(text)]
