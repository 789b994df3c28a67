"""An answer as files, read when it is judged: thousands need no memory, and a resumed run judges the same bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ar_omni_jax.documents import Document, DocumentError
from ar_omni_jax.evaluation.manifest import answer_parts, references
from ar_omni_jax.vocabulary import Modality

_REMEDY = "a file of the data must be made again; an answer is made again when its file is removed"


@dataclasses.dataclass(frozen=True)
class FileAnswer:
    """Text and paths. `is_reference`: the text is the document's first reference, and is not held against itself."""

    text: str
    image_paths: tuple[Path, ...] = ()
    speech_paths: tuple[Path, ...] = ()
    problems: tuple[str, ...] = ()
    is_reference: bool = False

    @property
    def images(self) -> list[np.ndarray]:
        """uint8 [H, W, 3] each; DocumentError naming a file that cannot be read."""
        from PIL import Image

        out = []
        for path in self.image_paths:
            try:
                with Image.open(path) as image:
                    out.append(np.asarray(image.convert("RGB")))
            except OSError as error:
                raise DocumentError(f"{path} cannot be read as a picture ({error}); {_REMEDY}") from error
        return out

    def waves(self, sample_rate: int) -> list[np.ndarray]:
        """float32 [T] mono each, at `sample_rate` Hz; DocumentError naming a file that cannot be read."""
        from ar_omni_jax.tokenizers.speech import read_audio

        out = []
        for path in self.speech_paths:
            try:
                out.append(read_audio(path, sample_rate))
            except (ValueError, OSError) as error:
                raise DocumentError(f"{path} cannot be read as speech ({error}); {_REMEDY}") from error
        return out


def true_answer(document: Document, root: Path) -> FileAnswer:
    """The document's own answer; of several captions the first."""
    parts = answer_parts(document)
    text = " ".join(p.value for p in parts if p.modality == Modality.TEXT)
    paths = {
        kind: tuple(root / p.value for p in parts if p.modality == kind) for kind in (Modality.IMAGE, Modality.SPEECH)
    }
    if document.task == "caption":
        text = references(document)[0]
    return FileAnswer(text, paths[Modality.IMAGE], paths[Modality.SPEECH], is_reference=document.task == "caption")


def answer_from_record(record: Mapping[str, Any], folder: Path) -> FileAnswer:
    """From what `Answer.save` wrote."""
    files = [folder / name for name in record["files"]]
    images, speech = (tuple(f for f in files if f.suffix == suffix) for suffix in (".png", ".wav"))
    problems, is_reference = tuple(record["problems"]), record.get("is_reference", False)
    return FileAnswer(record["text"], images, speech, problems, is_reference)
