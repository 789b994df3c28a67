"""The three tokenizers and the joint vocabulary that they make, from one directory.

A directory holds `text.model`, `image.json` + `image.safetensors`, `speech.json` + `speech.safetensors`, and
optionally `vocabulary.json` (`JointVocabulary.to_dict()`) where the layout is not the compact one. The name
"toyworld" stands for the directory that ships with the package. With Chameleon's `text_tokenizer.json` in place of
`text.model` the layout is the published one, and parts that nobody needs may be missing. Layout and identities come
from the small JSON files: a codec's weights are read when it is first used, so text-only users never load one.
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

from ar_omni_jax.tokenizers import chameleon_text
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
_CONVERT = "python -m ar_omni_jax.convert --from={layout} --to=tokenizer --input=FILE.ckpt --output={directory}"
_PUBLISHED_REMEDY = {
    "image": _CONVERT.replace("{layout}", "vqgan"),
    "speech": _CONVERT.replace("{layout}", "wavtokenizer"),
}
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
        raise TokenizerError(
            f"tokenizers {name!r}: neither a directory nor one of {', '.join(BUILT_IN)}; give the folder that the data "
            "or the model was made with (--tokenizers of ar_omni_jax.convert and build_shards)"
        )
    if (directory / chameleon_text.FILE).is_file():
        return _load_published(directory, need)
    for part in PARTS:
        _require_files(directory, _FILES[part] if part in need else _FILES[part][:1], part, _REMEDY)
    text = TextTokenizer.load(directory / "text.model")
    records = {part: _read_json(directory / f"{part}.json", part) for part in ("image", "speech")}
    identities = {"text": text.identity} | {part: str(records[part]["identity"]) for part in records}
    layout = directory / "vocabulary.json"
    if layout.is_file():
        vocabulary = JointVocabulary.from_dict(_parse_json(layout))
    else:
        name = name if name in BUILT_IN else directory.name
        image, codes = _image_config(records["image"], directory), _speech_codes(records["speech"], directory)
        vocabulary = compact_vocabulary(text.size, image.n_embed, codes, image.grid, name=name)
    return Tokenizers(vocabulary, identities, {"text": lambda: text} | _codec_makers(directory))


def _load_published(directory: Path, need: Sequence[str]) -> Tokenizers:
    """A directory with Chameleon's text tokenizer: the published layout, and of image and speech what is needed."""
    for part in PARTS[1:]:
        _require_files(directory, _FILES[part] if part in need else (), part, _PUBLISHED_REMEDY)
    there = [part for part in PARTS[1:] if (directory / f"{part}.json").is_file()]
    records = {part: _read_json(directory / f"{part}.json", part) for part in there}
    grid = {"image_grid": _image_config(records["image"], directory).grid} if "image" in records else {}
    text = chameleon_text.read_published(directory / chameleon_text.FILE, **grid)
    layout = directory / "vocabulary.json"
    if layout.is_file():
        text.vocabulary.require_same(JointVocabulary.from_dict(_parse_json(layout)).fingerprint, str(layout))
    identities = {"text": text.identity} | {part: str(records[part]["identity"]) for part in there}
    make = {"text": functools.partial(chameleon_text.ChameleonTextTokenizer, text)} | _codec_makers(directory)
    return Tokenizers(text.vocabulary, identities, make)


def _require_files(directory: Path, files: Sequence[str], part: str, remedies: Mapping[str, str]) -> None:
    for file in files:
        if not (directory / file).is_file():
            raise TokenizerError(
                f"{directory / file} is missing ({part} tokenizer of {str(directory)!r}); make it with "
                f"{remedies[part].format(part=part, directory=directory)}"
            )


def _codec_makers(directory: Path) -> dict[str, Callable[[], Any]]:
    return {
        "image": functools.partial(_load, f"{__package__}.image.tokenizer", "ImageTokenizer", directory / "image"),
        "speech": functools.partial(_load, f"{__package__}.speech.tokenizer", "SpeechTokenizer", directory / "speech"),
    }


def _image_config(record: dict, directory: Path) -> Any:
    from ar_omni_jax.tokenizers.image.config import VQGANConfig

    try:
        return VQGANConfig.from_dict({k: record[k] for k in ("ddconfig", "n_embed", "embed_dim")})
    except (KeyError, ValueError, TypeError) as e:
        raise TokenizerError(f"{directory}: image.json has an unusable config ({e!r})") from e


def _speech_codes(record: dict, directory: Path) -> int:
    """Size of the speech codebook."""
    from ar_omni_jax.tokenizers.speech.config import SpeechCodecConfig

    try:
        return SpeechCodecConfig.from_dict(record["config"]).codebook_size
    except (KeyError, ValueError, TypeError) as e:
        raise TokenizerError(f"{directory}: speech.json has an unusable config ({e!r})") from e


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
