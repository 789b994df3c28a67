"""From documents without an answer to text, pixels and sound: what `generate`, `evaluate` and samples share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ar_omni_jax import templates
from ar_omni_jax.documents import Document, DocumentError, Part, Turn
from ar_omni_jax.responses import parse_response, response_text
from ar_omni_jax.tokenizers.bundle import Tokenizers
from ar_omni_jax.vocabulary import Modality


@dataclasses.dataclass
class Answer:
    """What the model answered.

    text: the text parts joined by blanks. images: uint8 [H, W, 3] each. speech: float32 [T] each, in [-1, 1] at the
    speech tokenizer's rate. tokens: int32, the generated ids as they came. problems: what was malformed, in words.
    """

    text: str
    images: list[np.ndarray]
    speech: list[np.ndarray]
    tokens: np.ndarray
    problems: list[str] = dataclasses.field(default_factory=list)

    def save(self, directory: Path, name: str, sample_rate: int) -> dict:
        """Writes name.txt, name-k.png and name-k.wav (16 bit) as far as there is something; returns the record."""
        import soundfile
        from PIL import Image

        directory.mkdir(parents=True, exist_ok=True)
        files = []
        if self.text:
            files.append(directory / f"{name}.txt")
            files[-1].write_text(self.text + "\n", encoding="utf-8")
        for k, pixels in enumerate(self.images):
            files.append(directory / (f"{name}.png" if len(self.images) == 1 else f"{name}-{k}.png"))
            Image.fromarray(pixels).save(files[-1])
        for k, wave in enumerate(self.speech):
            files.append(directory / (f"{name}.wav" if len(self.speech) == 1 else f"{name}-{k}.wav"))
            soundfile.write(files[-1], np.clip(wave, -1.0, 1.0), sample_rate, subtype="PCM_16")
        record = {
            "name": name,
            "text": self.text,
            "files": [f.name for f in files],
            "tokens": self.tokens.tolist(),
            "problems": self.problems,
        }
        (directory / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        return record


def encode_media(documents: Sequence[Document], tokenizers: Tokenizers, root: Path) -> list[list[np.ndarray]]:
    """Codes int32 of every image and speech part, by document, in the order of `Document.media()`.

    Values that are relative paths are looked up under `root`. Raises what the readers raise, with the document named.
    """
    from ar_omni_jax.tokenizers.image import read_image
    from ar_omni_jax.tokenizers.speech import read_audio

    images, waves, places = [], [], []
    for document in documents:
        row = []
        for part in document.media():
            value = root / part.value if isinstance(part.value, (str, Path)) else part.value
            try:
                if part.modality == Modality.IMAGE:
                    row.append((Modality.IMAGE, len(images)))
                    images.append(read_image(value, tokenizers.image.image_size))
                else:
                    row.append((Modality.SPEECH, len(waves)))
                    waves.append(read_audio(value, tokenizers.speech.sample_rate))
            except (ValueError, OSError) as error:
                raise DocumentError(f"document {document.id!r}: {error}") from error
        places.append(row)
    image_codes = _encode_images(tokenizers, images) if images else []
    speech_codes = tokenizers.speech.encode_batch(waves) if waves else []
    table = {Modality.IMAGE: image_codes, Modality.SPEECH: speech_codes}
    return [[np.asarray(table[modality][k], np.int32) for modality, k in row] for row in places]


def _encode_images(tokenizers: Tokenizers, images: list[np.ndarray], batch: int = 32) -> list[np.ndarray]:
    """int32 [h*w] codes of each float32 image, in batches of one shape (so that one program is compiled)."""
    out = []
    for start in range(0, len(images), batch):
        chunk = np.stack(images[start : start + batch])
        padded = np.concatenate([chunk, np.repeat(chunk[-1:], batch - len(chunk), axis=0)])
        out.extend(np.asarray(tokenizers.image.encode(padded))[: len(chunk)])
    return out


def prompt_tokens(documents: Sequence[Document], tokenizers: Tokenizers, template: str, root: Path) -> list[np.ndarray]:
    """int32 prompt of each document (its last answer removed), ending where the model starts to write."""
    asked = [templates.without_answer(d) for d in documents]
    codes = encode_media(asked, tokenizers, root)
    return [
        templates.prompt(document, template, tokenizers.vocabulary, tokenizers.text.encode, row)
        for document, row in zip(asked, codes, strict=True)
    ]


def detokenize(tokens: np.ndarray, tokenizers: Tokenizers, budgets: Mapping[str, int] | None = None) -> Answer:
    """Generated ids int32 [n] -> Answer. An image with a wrong number of codes is a problem, never padded.

    `budgets` are those of the generation ({"text": n, "speech": n}): a part that fills its own was cut there, and the
    answer says so.
    """
    length = tokenizers.vocabulary.image_length
    parsed = parse_response(tokens, tokenizers.vocabulary)
    texts, images, speech = [], [], []
    problems = list(parsed.problems)
    for modality, codes in parsed:
        budget = (budgets or {}).get(modality.name.lower())
        if budget is not None and len(codes) >= budget:
            problems.append(f"{modality.name.lower()} part ended by its budget of {budget} tokens")
        if modality == Modality.TEXT:
            texts.append(response_text(codes, tokenizers.text.decode))
        elif modality == Modality.SPEECH and len(codes):
            speech.append(np.asarray(tokenizers.speech.decode(codes), np.float32))
        elif modality == Modality.IMAGE and len(codes) == length:
            images.append(np.asarray(tokenizers.image.decode(np.asarray(codes)[None])[0]))
    return Answer(" ".join(t for t in texts if t), images, speech, np.asarray(tokens, np.int32), problems)


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
