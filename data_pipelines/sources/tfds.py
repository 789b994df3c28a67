"""TFDS data sets that are prepared in a random access format, such as ArrayRecord: `pip install 'ar_omni_jax[tfds]'`.

    --source=tfds --input=coco_captions:train            a name, looked up where TFDS keeps its data (TFDS_DATA_DIR)
    --source=tfds --input=/data/scenes/1.0.0:train[:10%] the folder of a prepared version, code or no code

Each record's media and text become a pair; text alone becomes a text document. The features are found by type and,
where there are several, by the names in TEXTS and MEDIA; --columns=media:NAME,text:NAME says which otherwise, with a
slash into nested ones (captions/text). Of several texts the first one is taken. Nothing is downloaded.

Images, and audio that is kept as a file, are handed on as their bytes; audio that is kept as samples becomes a WAV at
the feature's `sample_rate`. Without TensorFlow TFDS reads images and text; its Audio needs TensorFlow to exist at all.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ar_omni_jax.documents import Document, DocumentError, Part, Turn
from ar_omni_jax.vocabulary import Modality
from data_pipelines.pairs import pair_document
from data_pipelines.sources.base import Record
from data_pipelines.sources.options import NO_OPTIONS, SourceOptions

NAME = "tfds"
MEDIA = ("image", "audio", "speech")
TEXTS = ("text", "caption", "captions/text", "transcript", "transcription", "sentence", "title")
INSTALL = "pip install 'ar_omni_jax[tfds]'"
_INPUT = re.compile(r"(?P<name>.+):(?P<split>[A-Za-z_]\w*(?:\[[^\[\]]*\])?)")


class TfdsSource:
    """Source of the pairs, or texts, of one split of one data set; records are named by data set, split and place."""

    def __init__(self, path: str | os.PathLike, options: SourceOptions = NO_OPTIONS):
        match = _INPUT.fullmatch(os.fspath(path))
        if match is None:
            raise DocumentError(f"{path}: --input of a TFDS data set is NAME:SPLIT or FOLDER:SPLIT, as mnist:train")
        self._options, self._name, split = options, match["name"], match["split"]
        tfds = _import()
        builder = _builder(tfds, self._name)
        features = dict(_leaves(tfds, builder.info.features))
        self._media, self._modality = _media(tfds, features, options, self._name)
        self._text = _text(tfds, features, options, self._name)
        self._rate = getattr(features[self._media], "sample_rate", None) if self._media else None
        if options.column("id") is not None and options.column("id") not in features:
            raise DocumentError(f"{self._name}: no feature {options.column('id')!r}; it has {', '.join(features)}")
        if self._media is None:
            options.refuse(f"{NAME} of text alone", "tasks", "instructions", "prompt_dropout")
        self._data = _data_source(tfds, builder, split, _decoders(tfds, features))
        self._prefix = f"{builder.info.name}-{split}"
        self.digest = _digest(builder, split)

    def __len__(self) -> int:
        return len(self._data)

    def ids(self) -> Iterator[str | None]:
        if self._options.column("id") is None:
            return (self._id(index, None) for index in range(len(self)))
        return (record.id or None for record in self.read(0, len(self)))

    def read(self, start: int, stop: int) -> Iterator[Record]:
        for index in range(start, min(stop, len(self))):
            where, name = f"{self._name}: {self._prefix}, record {index}", ""
            try:
                try:
                    values = self._data[index]
                except Exception as e:  # TFDS, protobuf and ArrayRecord have no common error
                    raise DocumentError(f"{where}: cannot be read ({_line(e)}); copy or prepare the data again") from e
                name = self._id(index, values)
                yield Record(index, where, name, self._document(values, name, where))
            except DocumentError as e:
                yield Record(index, where, name, error=str(e))

    def _id(self, index: int, values: Any) -> str:
        column = self._options.column("id")
        return f"{self._prefix}:{index}" if column is None else str(_words(_get(values, column)))

    def _document(self, values: Any, name: str, where: str) -> Document:
        text = _words(_get(values, self._text))
        if self._media is None:
            if not isinstance(text, str) or not text.strip():
                raise DocumentError(f"{where}: empty or missing text {text!r}; drop the record")
            return Document(name, "text", "text", (Turn("user", (Part(Modality.TEXT, text),)),), NAME)
        value = _get(values, self._media)
        if isinstance(value, np.ndarray):
            value = self._wav(value, where)
        if not isinstance(value, bytes) or not value:
            raise DocumentError(f"{where}: {self._media} is empty; drop the record")
        return pair_document(name, text, Part(self._modality, value), self._options, source=NAME, where=where)

    def _wav(self, samples: np.ndarray, where: str) -> bytes:
        """Samples [T] or [T, channels]; whole numbers are those of 16 bits, or of 32 where they are larger."""
        if not self._rate:
            raise DocumentError(
                f"{where}: feature {self._media} has no sample_rate, which samples mean nothing without; "
                "prepare the data set with Audio(sample_rate=...)"
            )
        if samples.dtype.kind == "f":
            kind, subtype = np.float32, "FLOAT"
        else:
            wide = samples.size and max(-int(samples.min()), int(samples.max())) > 32767 + (samples.min() < 0)
            kind, subtype = (np.int32, "PCM_32") if wide else (np.int16, "PCM_16")
        buffer = io.BytesIO()
        soundfile.write(buffer, samples.astype(kind), int(self._rate), format="WAV", subtype=subtype)
        return buffer.getvalue()


# -- the library -----------------------------------------------------------------------------------------------
def _import() -> Any:
    try:
        import tensorflow_datasets as tfds

        return tfds
    except ImportError as e:
        raise DocumentError(f"the source tfds needs TensorFlow Datasets ({e}): {INSTALL}") from e


def _builder(tfds: Any, name: str) -> Any:
    folder = Path(name)
    try:
        if folder.is_dir():
            if not (folder / "features.json").is_file():
                found = sorted(str(p.parent) for p in folder.glob("**/features.json"))[:8]
                hint = f"; did you mean {', '.join(found)}?" if found else "; is it a prepared TFDS data set?"
                raise DocumentError(f"{name}: no features.json in it, which the folder of a version has{hint}")
            return tfds.builder_from_directory(folder)
        return tfds.builder(name)
    except ImportError as e:
        raise DocumentError(f"{name}: TFDS cannot open it without another package ({_line(e)}): {INSTALL}") from e
    except DocumentError:
        raise
    except Exception as e:  # of many kinds: unknown names, versions, features
        raise DocumentError(f"{name}: TFDS cannot open it ({_line(e)}); give a name it has, or a folder") from e


def _data_source(tfds: Any, builder: Any, split: str, decoders: dict[str, Any]) -> Any:
    name, prepare = builder.info.full_name, f"tfds build {builder.info.name} --file_format=array_record"
    if not builder.info.splits:
        raise DocumentError(f"{name}: not prepared in {builder.data_dir}; run {prepare} (TFDS_DATA_DIR sets where)")
    try:
        return builder.as_data_source(split, decoders=decoders)
    except NotImplementedError as e:
        raise DocumentError(
            f"{name}: is in {builder.data_dir} in a format without random access; run {prepare}, or tfds "
            "convert_format --out_file_format=array_record"
        ) from e
    except Exception as e:  # an unknown split, a shard that is gone
        splits = ", ".join(builder.info.splits)
        raise DocumentError(f"{name}: split {split} cannot be opened ({_line(e)}); it has {splits}") from e


def _digest(builder: Any, split: str) -> str:
    """Of what the split is: version, features, shards and how many records each has."""
    info = builder.info.splits[split]
    parts = [str(info.file_instructions), info.num_examples]
    shape = json.dumps([builder.info.full_name, *parts, repr(builder.info.features)])
    return hashlib.sha256(shape.replace(str(builder.data_dir), "").encode()).hexdigest()[:16]


# -- features --------------------------------------------------------------------------------------------------
def _leaves(tfds: Any, feature: Any, path: str = "", repeated: bool = False) -> Iterator[tuple[str, Any]]:
    """(path, feature) of all that are no group; media that are repeated are left out."""
    if isinstance(feature, tfds.features.FeaturesDict):
        for name, inner in sorted(feature.items()):  # TFDS reads them in any order
            yield from _leaves(tfds, inner, f"{path}/{name}" if path else name, repeated)
    elif isinstance(feature, tfds.features.Sequence):
        yield from _leaves(tfds, feature.feature, path, True)
    elif not repeated or isinstance(feature, tfds.features.Text):
        yield path, feature


def _media(tfds: Any, features: dict, options: SourceOptions, name: str) -> tuple[str | None, Modality | None]:
    kinds = ((tfds.features.Image, Modality.IMAGE), (tfds.features.Audio, Modality.SPEECH))
    found = {path: m for path, feature in features.items() for kind, m in kinds if isinstance(feature, kind)}
    for path in [path for path in found if features[path].np_dtype == np.float32 and found[path] == Modality.IMAGE]:
        del found[path]  # a picture of floats is kept as one of their bytes
    path = _choose(found, options, "media", MEDIA, name)
    return path, found.get(path)


def _text(tfds: Any, features: dict, options: SourceOptions, name: str) -> str:
    found = [path for path, feature in features.items() if isinstance(feature, tfds.features.Text)]
    path = _choose(found, options, "text", TEXTS, name)
    if path is None:
        raise DocumentError(f"{name}: no Text among its features {', '.join(features)}; there is nothing to learn")
    return path


def _choose(found: Any, options: SourceOptions, what: str, usual: tuple[str, ...], name: str) -> str | None:
    """The path that the user named, the only one, or the one with a usual name; None where there is none at all."""
    wanted = options.column(what)
    if wanted is not None and wanted not in found:
        raise DocumentError(f"{name}: no {what} feature {wanted!r}; it has {', '.join(found) or 'none'}")
    named = [path for path in usual if path in found]
    if wanted is None and len(found) > 1 and not named:
        raise DocumentError(f"{name}: several {what} features; say which: --columns={what}:{next(iter(found))}")
    return wanted or next(iter(named or found), None)


def _decoders(tfds: Any, features: dict[str, Any]) -> dict[str, Any]:
    """Files stay files: only samples are decoded by TFDS."""
    out: dict[str, Any] = {}
    for path, feature in features.items():
        lazy = isinstance(feature, tfds.features.Audio) and feature.to_json_content().lazy_decode
        if isinstance(feature, tfds.features.Image) or lazy:
            *groups, last = path.split("/")
            place = out
            for group in groups:
                place = place.setdefault(group, {})
            place[last] = tfds.decode.SkipDecoding()
    return out


def _get(values: Any, path: str) -> Any:
    for name in path.split("/"):
        values = values[name]
    return values


def _words(value: Any) -> Any:
    """Text of a feature as str: the first of several, None of none."""
    while isinstance(value, np.ndarray | list):
        value = value[0] if len(value) else None
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
