"""One document of token ids back to things a person can see and hear: a text file, PNGs and WAVs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ar_omni_jax.documents import Role, split_token_class
from ar_omni_jax.vocabulary import JointVocabulary, Modality


def runs(classes: np.ndarray) -> list[tuple[int, int, int]]:
    """(class, start, end) of each longest run of equal token classes [n]."""
    borders = np.flatnonzero(np.diff(classes.astype(np.int16))) + 1
    starts = [0, *borders.tolist()]
    return [(int(classes[a]), a, b) for a, b in zip(starts, [*starts[1:], len(classes)], strict=True)]


def decode_document(tokens: np.ndarray, classes: np.ndarray, tokenizers: Any, prefix: Path) -> tuple[str, list[Path]]:
    """Writes prefix.txt and, for each image and utterance, prefix-N.png or prefix-N.wav.

    Args:
      tokens, classes: ids and token classes [n] of one document.
      tokenizers: `tokenizers.bundle.Tokenizers`; only those of modalities that occur are used.
    Returns the stream in readable form, markers by name and media by file, and the files written.
    """
    vocabulary: JointVocabulary = tokenizers.vocabulary
    names = {token: name for name, token in vocabulary.markers.items()}
    prefix.parent.mkdir(parents=True, exist_ok=True)
    pieces, files, role = [], [], None
    for index, start, end in runs(classes):
        _, run_role, modality = split_token_class(index)
        if run_role != role:
            role = run_role
            pieces.append(f"\n[{Role(role).name.lower()}] ")
        ids = tokens[start:end]
        if modality == Modality.MARKER:
            pieces.append("".join(f"<{names.get(int(i), f'id {i}')}>" for i in ids))
        elif modality == Modality.TEXT:
            pieces.append(tokenizers.text.decode(vocabulary.to_codes(Modality.TEXT, ids)))
        else:
            codes = vocabulary.to_codes(Modality(modality), ids)
            for file, note in _write_media(Modality(modality), codes, tokenizers, prefix, len(files)):
                files += [file] if file else []
                pieces.append(note)
    text = "".join(pieces).strip() + "\n"
    path = prefix.with_name(prefix.name + ".txt")
    path.write_text(text, encoding="utf-8")
    return text, [path, *files]


def _write_media(modality: Modality, codes: np.ndarray, tokenizers: Any, prefix: Path, number: int):
    """Yields (file or None, note) for the images or the utterance that a run of codes holds."""
    if modality == Modality.SPEECH:
        import soundfile

        path = prefix.with_name(f"{prefix.name}-{number}.wav")
        rate = tokenizers.speech.sample_rate
        samples = np.asarray(tokenizers.speech.decode(codes), np.float32)
        soundfile.write(path, np.clip(samples, -1, 1), rate, subtype="PCM_16")
        yield path, f"[{path.name}: {len(samples) / rate:.2f} s, {len(codes)} codes]"
        return
    from PIL import Image

    size = tokenizers.vocabulary.image_length
    for start in range(0, len(codes), size):
        part = codes[start : start + size]
        if len(part) < size:  # a document that was cut inside an image
            yield None, f"[image cut short: {len(part)} of {size} codes]"
            continue
        path = prefix.with_name(f"{prefix.name}-{number}.png")
        Image.fromarray(np.asarray(tokenizers.image.decode(part[None]))[0]).save(path)
        yield path, f"[{path.name}]"
        number += 1
