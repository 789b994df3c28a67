"""Chameleon's `text_tokenizer.json` as the tokenizer files that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ar_omni_jax.interop.errors import InteropError
from ar_omni_jax.interop.tensor_files import read_json

FILE = "text_tokenizer.json"
# HF puts images where this name stands; it is a reserved id that Chameleon's own programs do not use.
PLACEHOLDER = ("<reserved08707>", "<image>")


def tokenizer_files(tokenizers: str) -> dict[str, Any]:
    """{file name: content} for an HF folder, {} when `tokenizers` is no folder with Chameleon's text tokenizer.

    Raises InteropError for a file that is no tokenizer.
    """
    path = Path(tokenizers) / FILE
    if not tokenizers or not path.is_file():
        return {}
    record = read_json(path)
    old, new = PLACEHOLDER
    try:
        names = record["model"]["vocab"]
        record["model"]["vocab"] = {new if name == old else name: number for name, number in names.items()}
        for token in record.get("added_tokens") or ():
            token["content"] = new if token["content"] == old else token["content"]
    except (KeyError, TypeError, AttributeError) as error:
        raise InteropError(f"{path} is no tokenizer JSON ({error!r}); copy Chameleon's file again") from error
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
    return {"tokenizer.json": record, "tokenizer_config.json": settings, "special_tokens_map.json": special}


def write_files(folder: Path, files: dict[str, Any]) -> None:
    """Writes those of `files` that are not there yet."""
    for name, content in files.items():
        if not (folder / name).exists():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
