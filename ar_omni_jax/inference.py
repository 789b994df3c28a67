"""From documents without an answer to text, pixels and sound: what `generate`, `evaluate` and samples share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ar_omni_jax import templates
from ar_omni_jax.documents import Document, DocumentError, Part, Turn
from ar_omni_jax.files import replace_file
from ar_omni_jax.responses import parse_response, response_text
from ar_omni_jax.tokenizers.bundle import Tokenizers
from ar_omni_jax.tokenizers.speech.wav import wav_bytes
from ar_omni_jax.vocabulary import Modality


@dataclasses.dataclass
class Answer:
    """What the model answered.

    text: the text parts joined by blanks. images: uint8 [H, W, 3] each. speech: float32 [T] each, in [-1, 1] at
    `sample_rate` Hz. tokens: int32, the generated ids as they came. problems: what was malformed, in words.
    parts: the same in the order of the answer, ready for an assistant turn of a dialogue's history.
    notes: what else the user should know (history that was dropped). counts: tokens by kind. seconds: times.
    """

    text: str
    images: list[np.ndarray]
    speech: list[np.ndarray]
    tokens: np.ndarray
    problems: list[str] = dataclasses.field(default_factory=list)
    parts: list[Part] = dataclasses.field(default_factory=list)
    sample_rate: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def save(
        self,
        directory: Path,
        name: str,
        sample_rate: int | None = None,
        *,
        extra: Mapping | None = None,
        written: Sequence[Path] | None = None,
    ) -> dict:
        """Writes name.txt, name-k.png and name-k.wav (16 bit) as far as there is something, and name.json.

        sample_rate: default the answer's own. extra: further entries of the record. written: the WAV files, where
        they were written already while the answer came. Each file appears whole or not at all. Returns the record.
        """
        files = list(written or [])
        if self.text:
            files.append(directory / f"{name}.txt")
            replace_file(files[-1], (self.text + "\n").encode())
        for k, pixels in enumerate(self.images):
            files.append(directory / (f"{name}.png" if len(self.images) == 1 else f"{name}-{k}.png"))
            replace_file(files[-1], _png(pixels))
        for k, wave in enumerate(self.speech if written is None else ()):
            files.append(directory / (f"{name}.wav" if len(self.speech) == 1 else f"{name}-{k}.wav"))
            replace_file(files[-1], wav_bytes(wave, sample_rate or self.sample_rate))
        record = {
            "name": name,
            "text": self.text,
            "files": [f.name for f in files],
            "tokens": self.tokens.tolist(),
            "problems": self.problems,
            "notes": self.notes,
            "counts": self.counts,
            "seconds": {key: round(value, 4) for key, value in self.seconds.items()},
            **(extra or {}),
        }
        replace_file(directory / f"{name}.json", (json.dumps(record, indent=1) + "\n").encode())
        return record


def _png(pixels: np.ndarray) -> bytes:
    from ar_omni_jax.tokenizers.image.preprocess import encode_png

    return encode_png(pixels)


Media = list[tuple[Modality, np.ndarray]]  # pixels float32 [size, size, 3] or samples float32 [T]


def read_media(document: Document, tokenizers: Tokenizers, root: Path) -> Media:
    """Pixels and samples of a document's media, in the order of `Document.media()`, not yet encoded.

    A value is a path (relative ones under `root`), an encoded file's bytes, a picture of PIL, or an array: uint8
    pixels [H, W(, 3)], samples [T] at the speech tokenizer's rate, or (samples, rate). Raises DocumentError, with the
    document named, for what is missing, damaged, empty, too large or not finite.
    """
    from ar_omni_jax.tokenizers.image import read_image
    from ar_omni_jax.tokenizers.speech import read_audio

    out: Media = []
    for part in document.media():
        value, rate = part.value, None
        if isinstance(value, tuple) and len(value) == 2 and part.modality == Modality.SPEECH:
            value, rate = value
        try:
            value = _at_hand(value, root)
            if part.modality == Modality.IMAGE:
                out.append((part.modality, read_image(value, tokenizers.image.image_size)))
            else:
                out.append((part.modality, read_audio(value, tokenizers.speech.sample_rate, source_rate=rate)))
        except (ValueError, OSError) as error:
            raise DocumentError(f"document {document.id!r}: {error}") from error
        except TypeError as error:
            kind = part.modality.name.lower()
            raise DocumentError(
                f"document {document.id!r}: {kind} is a {type(value).__name__}; give a path, a file's bytes or an array"
            ) from error
    return out


def _at_hand(value, root: Path):
    """A path under `root`; arrays of any library as NumPy's. Pictures of PIL stay: an array has no palette."""
    from PIL.Image import Image

    if isinstance(value, (str, Path)):
        return root / value
    if isinstance(value, Image) or not (hasattr(value, "__array__") or hasattr(value, "__array_interface__")):
        return value
    try:
        return np.asarray(value)
    except Exception as error:  # of any kind: a tensor of another device, one that wants its gradient ...
        raise ValueError(f"{type(value).__name__} cannot be read as an array ({error})") from error


def encode_read(media: Sequence[Media], tokenizers: Tokenizers) -> list[list[np.ndarray]]:
    """int32 codes of what `read_media` read, by document; equal kinds go through their network together."""
    flat = [item for row in media for item in row]
    images = [value for modality, value in flat if modality == Modality.IMAGE]
    waves = [value for modality, value in flat if modality == Modality.SPEECH]
    codes = {
        Modality.IMAGE: iter(tokenizers.image.encode(np.stack(images)) if images else []),
        Modality.SPEECH: iter(tokenizers.speech.encode_batch(waves) if waves else []),
    }
    return [[np.asarray(next(codes[modality]), np.int32) for modality, _ in row] for row in media]


def encode_media(documents: Sequence[Document], tokenizers: Tokenizers, root: Path) -> list[list[np.ndarray]]:
    """Codes int32 of every image and speech part, by document. Raises what `read_media` raises."""
    return encode_read([read_media(document, tokenizers, root) for document in documents], tokenizers)


def prompt_tokens(documents: Sequence[Document], tokenizers: Tokenizers, template: str, root: Path) -> list[np.ndarray]:
    """int32 prompt of each document (its last answer removed), ending where the model starts to write."""
    asked = [templates.without_answer(d) for d in documents]
    codes = encode_media(asked, tokenizers, root)
    return [
        templates.prompt(document, template, tokenizers.vocabulary, tokenizers.text.encode, row)
        for document, row in zip(asked, codes, strict=True)
    ]


def detokenize(
    tokens: np.ndarray,
    tokenizers: Tokenizers,
    budgets: Mapping[str, int] | None = None,
    *,
    ready: Mapping[Modality, Sequence[np.ndarray]] | None = None,
) -> Answer:
    """Generated ids int32 [n] -> Answer. An image with a wrong number of codes is a problem, never padded.

    `budgets` are those of the generation ({"text": n, "speech": n}): a part that fills its own was cut there, and the
    answer says so. `ready`: samples and pixels that were decoded while the tokens came, by modality in their order.
    """
    vocabulary = tokenizers.vocabulary
    parsed = parse_response(tokens, vocabulary)
    at_hand = {kind: list((ready or {}).get(kind, ())) for kind in (Modality.IMAGE, Modality.SPEECH)}
    answer = Answer("", [], [], np.asarray(tokens, np.int32), list(parsed.problems))
    answer.counts["answer"] = len(answer.tokens)
    for modality, codes in parsed:
        kind = modality.name.lower()
        answer.counts[kind] = answer.counts.get(kind, 0) + len(codes)
        budget = (budgets or {}).get(kind)
        if budget is not None and len(codes) >= budget:
            answer.problems.append(f"{kind} part ended by its budget of {budget} tokens")
        value = _decode_part(modality, codes, tokenizers, at_hand)
        if value is not None:
            answer.parts.append(Part(modality, value))
    values = {m: [p.value for p in answer.parts if p.modality == m] for m in Modality}
    answer.text = " ".join(values[Modality.TEXT])
    answer.images, answer.speech = values[Modality.IMAGE], values[Modality.SPEECH]
    answer.sample_rate = tokenizers.speech.sample_rate if answer.speech else 0
    return answer


def _decode_part(modality: Modality, codes: np.ndarray, tokenizers: Tokenizers, at_hand: Mapping):
    """Text, uint8 pixels or float32 samples of one part's codes; None where there is nothing to see or hear."""
    if modality == Modality.TEXT:
        return response_text(codes, tokenizers.text.decode) or None
    if modality == Modality.SPEECH and len(codes):
        if at_hand[modality] and len(at_hand[modality][0]) == len(codes) * tokenizers.speech.hop_length:
            return at_hand[modality].pop(0)
        return np.asarray(tokenizers.speech.decode(codes), np.float32)
    if modality == Modality.IMAGE and len(codes) == tokenizers.vocabulary.image_length:
        if at_hand[modality]:
            return at_hand[modality].pop(0)
        return np.asarray(tokenizers.image.decode(np.asarray(codes)[None])[0])
    return None


def answer_tokens(documents: Sequence[Document], tokenizers: Tokenizers, template: str, root: Path) -> list[np.ndarray]:
    """int32 ids of each document's own last answer: what a perfect model would generate (the tokenizers' ceiling)."""
    codes = encode_media(documents, tokenizers, root)
    out = []
    for document, row in zip(documents, codes, strict=True):
        whole = templates.tokenize(document, template, tokenizers.vocabulary, tokenizers.text.encode, row)
        asked = templates.without_answer(document)
        prompt = templates.prompt(
            asked, template, tokenizers.vocabulary, tokenizers.text.encode, row[: len(asked.media())]
        )
        out.append(whole.tokens[len(prompt) :])
    return out


def user_document(task: str, *, text: str | None = None, image=None, speech=None, history=()) -> Document:
    """A Document from what a user typed: one user turn with the given parts after `history` (turns)."""
    parts = []
    if speech is not None:
        parts.append(Part(Modality.SPEECH, speech))
    if image is not None:
        parts.append(Part(Modality.IMAGE, image))
    if text:
        parts.append(Part(Modality.TEXT, text))
    turns = (*history, Turn("user", tuple(parts))) if parts else tuple(history)
    return Document(id="request", task=task, group="text", turns=turns)
