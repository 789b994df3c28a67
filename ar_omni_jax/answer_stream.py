"""Generated tokens to text, sound and pixels while they come: what `Predictor.stream` gives out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from ar_omni_jax.inference import Answer, detokenize
from ar_omni_jax.tokenizers.bundle import Tokenizers
from ar_omni_jax.tokenizers.speech.streaming import SpeechStream
from ar_omni_jax.vocabulary import Modality

_HELD_BACK = " \t\n\r\ufffd"  # at a text's end: blanks are stripped there, and half a character may yet be completed


@dataclasses.dataclass(frozen=True)
class Piece:
    """The next of one request's answer.

    index: which request. part: which part of its answer, from 0. text: the next characters of a text part.
    samples: the next float32 [T] of a speech part. image: uint8 [H, W, 3], whole. answer: everything together, in
    the request's last piece. error: why there is no (more) answer, in its last piece.
    """

    index: int
    part: int = 0
    text: str = ""
    samples: np.ndarray | None = None
    image: np.ndarray | None = None
    answer: Answer | None = None
    error: Exception | None = None


class AnswerStream:
    """One request's tokens to pieces.

    live: False gives no pieces while tokens come; the answer is then decoded offline at the end. speech: options
    of `SpeechStream` for codecs that are not causal.
    """

    def __init__(self, tokenizers: Tokenizers, index: int = 0, *, live: bool = True, speech: Mapping | None = None):
        self.tokenizers, self.index, self.live, self._speech = tokenizers, index, live, dict(speech or {})
        self.tokens: list[np.ndarray] = []
        self._kind: Modality | None = None
        self._part = 0
        self._codes = np.zeros(0, np.int32)  # of the open part
        self._said = ""  # of the open text part
        self._stream: SpeechStream | None = None
        self._samples: list[np.ndarray] = []
        self._ready: dict[Modality, list] = {Modality.SPEECH: [], Modality.IMAGE: []}

    def push(self, tokens: np.ndarray) -> list[Piece]:
        """Next joint ids int [n] -> what they make audible, visible or readable."""
        tokens = np.asarray(tokens, np.int32).reshape(-1)
        self.tokens.append(tokens)
        pieces: list[Piece] = []
        if not self.live or not tokens.size:
            return pieces
        kinds = self.tokenizers.vocabulary.modality_of(tokens)
        for run in np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(kinds)) + 1):
            kind = Modality(int(kinds[run[0]]))
            if kind != self._kind:
                pieces += self._close()
            if kind != Modality.MARKER:
                self._kind = kind
                pieces += self._more(self.tokenizers.vocabulary.to_codes(kind, tokens[run]))
        return pieces

    def finish(self, budgets: Mapping[str, int] | None = None) -> tuple[list[Piece], Answer]:
        """After the last token: what was held back, and the whole answer."""
        pieces = self._close()
        tokens = np.concatenate([np.zeros(0, np.int32), *self.tokens])
        return pieces, detokenize(tokens, self.tokenizers, budgets, ready=self._ready)

    def _more(self, codes: np.ndarray) -> list[Piece]:
        """Codes of the open part."""
        self._codes = np.concatenate([self._codes, codes])
        if self._kind == Modality.TEXT:
            return self._text(self.tokenizers.text.decode(self._codes).lstrip().rstrip(_HELD_BACK))
        if self._kind == Modality.SPEECH:
            self._stream = self._stream or SpeechStream(self.tokenizers.speech, **self._speech)
            return self._sound(self._stream.push(codes))
        return []

    def _text(self, text: str) -> list[Piece]:
        new, self._said = text[len(self._said) :], text
        return [Piece(self.index, self._part, text=new)] if new else []

    def _sound(self, samples: np.ndarray) -> list[Piece]:
        self._samples.append(samples)
        return [Piece(self.index, self._part, samples=samples)] if len(samples) else []

    def _close(self) -> list[Piece]:
        """Ends the open part, if any."""
        if self._kind is None:
            return []
        pieces: list[Piece] = []
        if self._kind == Modality.TEXT:
            pieces = self._text(self.tokenizers.text.decode(self._codes).strip())
        elif self._kind == Modality.SPEECH:
            pieces = self._sound(self._stream.finish())
            self._ready[Modality.SPEECH].append(np.concatenate(self._samples))
        elif len(self._codes) == self.tokenizers.vocabulary.image_length:
            pixels = np.asarray(self.tokenizers.image.decode(self._codes[None])[0])
            self._ready[Modality.IMAGE].append(pixels)
            pieces = [Piece(self.index, self._part, image=pixels)]
        self._kind, self._codes, self._said, self._stream, self._samples = None, self._codes[:0], "", None, []
        self._part += 1
        return pieces
