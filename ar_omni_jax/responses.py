"""What a model wrote, taken apart: generated tokens -> text, images and utterances as codes, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ar_omni_jax.vocabulary import JointVocabulary, Modality

# Markers round the codes of each medium: (opening, closing).
BRACKETS = {Modality.IMAGE: ("boi", "eoi"), Modality.SPEECH: ("boa", "eoa")}
_OPENED = {opening: kind for kind, (opening, _) in BRACKETS.items()}
_CLOSED = {closing: kind for kind, (_, closing) in BRACKETS.items()}


def response_text(pieces: np.ndarray, decode_text: Callable[[np.ndarray], str]) -> str:
    """Text that the model wrote, without the space that the template put before it."""
    return decode_text(pieces).strip()


class Response(list):
    """[(Modality, int32 codes)] in order. `problems`: what was wrong, for people. `ended`: an end marker came."""

    def __init__(self):
        super().__init__()
        self.problems: list[str] = []
        self.ended = False


def parse_response(tokens: np.ndarray, vocabulary: JointVocabulary) -> Response:
    """Generated tokens (after the prompt) -> text, images and utterances as codes; never raises on ids.

    Runs of one modality become parts. Codes outside brackets, brackets that are not closed, an image of the
    wrong length, foreign ids and text after an end marker are reported in `.problems`, not hidden: an image
    part may have any length there. Stops at `<eos>` or `<eom>`; padding is skipped.
    """
    tokens = np.asarray(tokens).reshape(-1)
    return _Parser(vocabulary).parse(tokens)


class _Parser:
    def __init__(self, vocabulary: JointVocabulary):
        self.vocabulary, self.out = vocabulary, Response()
        self.names = {token: name for name, token in vocabulary.markers.items()}
        self.inside: Modality | None = None  # between <boi> and <eoi>, or <boa> and <eoa>
        self.run: list[int] = []
        self.kind: Modality | None = None

    def parse(self, tokens: np.ndarray) -> Response:
        for at, token in enumerate(tokens.tolist()):
            if not 0 <= token < self.vocabulary.size:
                self.report(at, f"id {token} is outside the vocabulary; skipped")
                continue
            kind = Modality(int(self.vocabulary.modality_table[token]))
            if kind != Modality.MARKER:
                self.code(at, kind, token)
            elif self.marker(at, token):
                self.out.ended = True
                break
        self.close(len(tokens), closed=self.inside is None)
        return self.out

    def report(self, at: int, problem: str) -> None:
        self.out.problems.append(f"token {at}: {problem}")

    def code(self, at: int, kind: Modality, token: int) -> None:
        if self.inside is not None and kind != self.inside:
            return self.report(at, f"{kind.name.lower()} id {token} inside {self.inside.name.lower()}; skipped")
        if kind != self.kind:
            self.close(at, closed=True)
            self.kind = kind
            if kind != Modality.TEXT and self.inside is None:
                self.report(at, f"{kind.name.lower()} codes without an opening marker")
        self.run.append(token)

    def marker(self, at: int, token: int) -> bool:
        """Acts on a marker or reserved id; True at the end of the response."""
        name = self.names.get(token)
        if name in ("eos", "eom"):
            return True
        if name in _OPENED:
            self.close(at, closed=self.inside is None)
            self.inside = self.kind = _OPENED[name]
        elif name in _CLOSED:
            if self.inside != _CLOSED[name]:
                self.report(at, f"<{name}> closes nothing; skipped")
            if self.inside in (None, _CLOSED[name]):
                self.close(at, closed=True)
        elif name != "pad":
            self.report(at, f"<{name or token}> has no place in a response; skipped")
        return False

    def close(self, at: int, closed: bool) -> None:
        """Ends the current run: appends it to the response with what is wrong about it."""
        kind, codes, inside = self.kind, self.run, self.inside
        self.kind, self.run, self.inside = None, [], None
        if not closed and inside is not None:
            self.report(at, f"{inside.name.lower()} part is not closed")
        if kind is None:
            return
        if kind == Modality.IMAGE and len(codes) != self.vocabulary.image_length:
            self.report(at, f"image of {len(codes)} codes, a whole one has {self.vocabulary.image_length}")
        if kind == Modality.SPEECH and not codes:
            self.report(at, "speech part without codes")
        if codes or kind == Modality.IMAGE:
            self.out.append((kind, self.vocabulary.to_codes(kind, np.array(codes, np.int64))))
