"""The three tokenizers and the joint vocabulary that they make, from one directory.

A directory holds `text.model`, `image.json` + `image.safetensors`, `speech.json` + `speech.safetensors`, and
optionally `vocabulary.json` (`JointVocabulary.to_dict()`) where the layout is not the compact one. The name
"toyworld" stands for the directory that ships with the package. Layout and identities come from the small JSON
files: a codec's weights are read when it is first used, so text-only users never load one.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ar_omni_jax.tokenizers.text import TextCodec, TextTokenizer, TokenizerError
from ar_omni_jax.vocabulary import JointVocabulary, VocabularyError, compact_vocabulary

PARTS = ("text", "image", "speech")
BUILT_IN = {"toyworld": Path(__file__).with_name("assets")}
_FILES = {
    "text": ("text.model",),
    "image": ("image.json", "image.safetensors"),
    "speech": ("speech.json", "speech.safetensors"),
}
_TRAIN = (
    "python -m ar_omni_jax.tokenizers.train --config=configs/tokenizer_{part}.py --workdir=WORK, then copy "
    "WORK/{part}.json and WORK/{part}.safetensors to {directory}"
)
_REMEDY = {
    "text": "python -m ar_omni_jax.tokenizers.train_text --input=TOY/train.jsonl --output={directory}/text",
    "image": _TRAIN,
    "speech": _TRAIN,
}


class Tokenizers:
    """Text, image and speech tokenizers that belong together, each made at its first use.

    vocabulary: the joint layout. identities: {"text" | "image" | "speech": str}, changing with the weights.
    fingerprint: 16 hex digits over vocabulary and identities. make: {part: callable without arguments}.
    Raises VocabularyError at first use of a part whose size does not fit the vocabulary.
    """

    def __init__(
        self,
        vocabulary: JointVocabulary,
        identities: Mapping[str, str],
        make: Mapping[str, Callable[[], Any]],
    ):
        self.vocabulary, self.identities, self._make = vocabulary, dict(identities), dict(make)

    @functools.cached_property
    def text(self) -> TextCodec:
        tokenizer = self._make["text"]()
        self._require("text", tokenizer.size, self.vocabulary.text.count)
        return tokenizer

    @functools.cached_property
    def image(self) -> Any:
        """`tokenizers.image.tokenizer.ImageTokenizer`."""
        tokenizer = self._make["image"]()
        self._require("image", tokenizer.codebook_size, self.vocabulary.image.count)
        self._require("image grid", tuple(tokenizer.grid), self.vocabulary.image_grid)
        return tokenizer

    @functools.cached_property
    def speech(self) -> Any:
        """`tokenizers.speech.tokenizer.SpeechTokenizer`."""
        tokenizer = self._make["speech"]()
        self._require("speech", tokenizer.codebook_size, self.vocabulary.speech.count)
        return tokenizer

    def _require(self, what: str, found: Any, expected: Any) -> None:
        if found != expected:
            raise VocabularyError(
                f"{what}: the tokenizer has {found}, vocabulary {self.vocabulary.name!r} has {expected}; "
                "use the tokenizers and vocabulary of one directory"
            )

    @functools.cached_property
    def fingerprint(self) -> str:
        data = json.dumps([self.vocabulary.fingerprint, self.identities], sort_keys=True)
        return hashlib.sha256(data.encode()).hexdigest()[:16]


def load_tokenizers(name_or_dir: str | os.PathLike = "toyworld", *, need: Sequence[str] = PARTS) -> Tokenizers:
    """Tokenizers by built-in name or directory.

    need: the parts whose weights must be there; TokenizerError names a missing file and the command that makes
    it. The JSON files of all parts must be there in any case, for the vocabulary.
    """
    unknown = sorted(set(need) - set(PARTS))
    if unknown:
        raise TokenizerError(f"need={list(need)}: no part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    name = str(name_or_dir)
    directory = BUILT_IN.get(name, Path(name_or_dir))
    if not directory.is_dir():
        raise TokenizerError(f"tokenizers {name!r}: neither a directory nor one of {', '.join(BUILT_IN)}")
    for part in PARTS:
        for file in _FILES[part] if part in need else _FILES[part][:1]:
            if not (directory / file).is_file():
                raise TokenizerError(
                    f"{directory / file} is missing ({part} tokenizer of {name!r}); make it with "
                    f"{_REMEDY[part].format(part=part, directory=directory)}"
                )
    text = TextTokenizer.load(directory / "text.model")
    records = {part: _read_json(directory / f"{part}.json", part) for part in ("image", "speech")}
    identities = {"text": text.identity} | {part: str(records[part]["identity"]) for part in records}
    make = {
        "text": lambda: text,
        "image": functools.partial(_load, f"{__package__}.image.tokenizer", "ImageTokenizer", directory / "image"),
        "speech": functools.partial(_load, f"{__package__}.speech.tokenizer", "SpeechTokenizer", directory / "speech"),
    }
    layout = directory / "vocabulary.json"
    if layout.is_file():
        vocabulary = JointVocabulary.from_dict(_parse_json(layout))
    else:
        name = name if name in BUILT_IN else directory.name
        vocabulary = _compact(name, text.size, records, directory)
    return Tokenizers(vocabulary, identities, make)


def _compact(name: str, pieces: int, records: Mapping[str, dict], directory: Path) -> JointVocabulary:
    """The compact layout of the sizes that the codecs' configurations state."""
    from ar_omni_jax.tokenizers.image.config import VQGANConfig
    from ar_omni_jax.tokenizers.speech.config import SpeechCodecConfig

    try:
        image = VQGANConfig.from_dict({k: records["image"][k] for k in ("ddconfig", "n_embed", "embed_dim")})
        speech = SpeechCodecConfig.from_dict(records["speech"]["config"])
    except (KeyError, ValueError, TypeError) as e:
        raise TokenizerError(f"{directory}: image.json or speech.json has an unusable config ({e!r})") from e
    return compact_vocabulary(pieces, image.n_embed, speech.codebook_size, image.grid, name=name)


def _parse_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise TokenizerError(f"{path}: malformed JSON ({e}); copy or export the tokenizer again") from e


def _read_json(path: Path, part: str) -> dict:
    record = _parse_json(path)
    if "identity" not in record:
        raise TokenizerError(f"{path}: key 'identity' is missing; copy or export the {part} tokenizer again")
    return record


def _load(module: str, name: str, prefix: Path) -> Any:
    """The codec class `name` of a module, imported on use, loaded from PREFIX.json and PREFIX.safetensors."""
    try:
        return getattr(importlib.import_module(module), name).load(prefix)
    except (ValueError, OSError) as e:
        raise TokenizerError(str(e)) from e
