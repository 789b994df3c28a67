"""This project's own codec files, as a layout of `convert`: a folder of `image.*` and `speech.*`, or one prefix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flax import nnx

from ar_omni_jax.interop import codec_files as files
from ar_omni_jax.interop.errors import InteropError
from ar_omni_jax.interop.registry import Layout
from ar_omni_jax.tokenizers.image import weights as image_weights
from ar_omni_jax.tokenizers.speech import weights as speech_weights


def _prefixes(path: Path) -> dict[str, Path]:
    """{"image" | "speech": prefix of its .json and .safetensors}."""
    if path.is_dir():
        return {kind: path / kind for kind in ("image", "speech") if (path / f"{kind}.json").is_file()}
    prefix = path.with_suffix("") if path.suffix in (".json", ".safetensors") else path
    record = prefix.with_name(f"{prefix.name}.json")
    try:
        values = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict) or "identity" not in values:
        return {}
    return {"image" if "ddconfig" in values else "speech": prefix}


def detect(path: Path) -> str | None:
    """Evidence that a folder, prefix or file is one of this project's codecs."""
    found = _prefixes(path)
    return " and ".join(f"{kind} codec {prefix.name}.json" for kind, prefix in found.items()) or None


def _read_image(prefix: Path) -> files.ImageWeights:
    try:
        model, identity = image_weights.load_tokenizer(str(prefix))
    except (OSError, ValueError) as error:
        raise InteropError(str(error)) from error
    tensors = image_weights.published_state(nnx.state(model, nnx.Param))
    return files.ImageWeights(model.config, tensors, f"{prefix} ({identity})")


def _read_speech(prefix: Path) -> files.SpeechWeights:
    try:
        codec, record = speech_weights.load(prefix)
    except (OSError, ValueError, KeyError) as error:
        raise InteropError(f"{prefix}: {error}") from error
    return files.SpeechWeights(codec.config, speech_weights.flatten(codec), f"{prefix} ({record['identity']})")


def load(path: Path, options: Any) -> files.Codecs:
    """See `registry.Layout`. Weights are read when `save` asks for them, so a folder may hold either or both."""
    found = _prefixes(path)
    if not found:
        raise InteropError(
            f"{path} holds no codec of this project; give a folder with image.json or speech.json, or one's prefix"
        )
    return files.Codecs(
        str(path),
        image=(lambda: _read_image(found["image"])) if "image" in found else None,
        speech=(lambda: _read_speech(found["speech"])) if "speech" in found else None,
    )


def save(loaded: files.Codecs, path: Path, options: Any) -> list[str]:
    """Writes PATH/image.{safetensors,json} and/or PATH/speech.*, float32; the JSON, which makes a pair valid, last.

    Other files of PATH stay, so that image, speech and text come together in one folder.
    """
    kinds = [kind for kind in ("image", "speech") if getattr(loaded, kind)]
    files.require_free(*(path / f"{kind}{suffix}" for kind in kinds for suffix in (".json", ".safetensors")))
    codecs = {kind: loaded.one(kind) for kind in kinds}
    lines = []
    for kind, codec in codecs.items():
        provenance = {"converted_from": codec.source}
        if kind == "image":
            image_weights.save_weights(str(path / kind), codec.config, codec.tensors, provenance)
        else:
            module = speech_weights.assemble(codec.config, codec.tensors)
            speech_weights.save(path / kind, module, provenance, dtype="float32")
        identity = json.loads((path / f"{kind}.json").read_text())["identity"]
        lines += [*codec.notes, f"{path / kind}.safetensors and .json: {kind} codec, identity {identity}"]
    return lines


LAYOUT = Layout(files.FAMILY, "codecs of this project: a folder of image.* and speech.*", detect, load, save)
