"""Sources of raw documents, by name. A new format is one module here and one line in SOURCES."""

from __future__ import annotations

import importlib
import os
from typing import Any

from ar_omni_jax.documents import DocumentError
from data_pipelines.sources.base import Record, Source
from data_pipelines.sources.options import NO_OPTIONS, SourceOptions

__all__ = ["SOURCES", "Record", "Source", "SourceOptions", "is_tokenized", "open_source"]

# name -> "module:class", imported on use: a format's libraries are needed only by those who read it.
SOURCES = {
    "any_instruct": "data_pipelines.sources.any_instruct:AnyInstructSource",
    "common_voice": "data_pipelines.sources.common_voice:CommonVoiceSource",
    "gigaspeech": "data_pipelines.sources.gigaspeech:GigaSpeechSource",
    "hf_parquet": "data_pipelines.sources.hf_parquet:HFParquetSource",
    "librispeech": "data_pipelines.sources.librispeech:LibriSpeechSource",
    "ljspeech": "data_pipelines.sources.ljspeech:LJSpeechSource",
    "manifest": "data_pipelines.sources.manifest:ManifestSource",
    "reference_jsonl": "data_pipelines.sources.reference_jsonl:ReferenceJsonlSource",
    "reference_parquet": "data_pipelines.sources.reference_parquet:ReferenceParquetSource",
    "text_jsonl": "data_pipelines.sources.text_jsonl:TextJsonlSource",
    "text_parquet": "data_pipelines.sources.text_parquet:TextParquetSource",
    "tfds": "data_pipelines.sources.tfds:TfdsSource",
    "vctk": "data_pipelines.sources.vctk:VCTKSource",
    "voice_assistant": "data_pipelines.sources.voice_assistant:VoiceAssistantSource",
    "webdataset": "data_pipelines.sources.webdataset:WebDatasetSource",
}


def open_source(name: str, path: str | os.PathLike, options: SourceOptions = NO_OPTIONS) -> Source:
    """The source called `name` over `path`; DocumentError naming the known ones otherwise."""
    return _class(name)(path, options)


def is_tokenized(name: str) -> bool:
    """Whether the source called `name` gives documents that are tokens already, so that no codec is needed."""
    return hasattr(_class(name), "layout")


def _class(name: str) -> Any:
    if name not in SOURCES:
        raise DocumentError(f"unknown source {name!r}; known sources: {', '.join(sorted(SOURCES))}")
    module, attribute = SOURCES[name].split(":")
    return getattr(importlib.import_module(module), attribute)
