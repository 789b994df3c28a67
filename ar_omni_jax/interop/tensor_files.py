"""Weights spread over safetensors or PyTorch files with an index, as transformers writes them: seen as one table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from ar_omni_jax.interop.arrays import DTYPES
from ar_omni_jax.interop.errors import InteropError
from ar_omni_jax.interop.safetensors_io import SafetensorsReader
from ar_omni_jax.interop.torch_files import is_mapped, read_torch_file

# Ways to store one model, best first: (one file, index of several).
FORMS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_REMAP = 1 << 30  # bytes read of a mapped file before the mapping is renewed, so that its pages leave memory


class TorchReader:
    """The tensors of one PyTorch file, with the attributes of `SafetensorsReader`."""

    def __init__(self, path: str | Path):
        self.path, self._read = Path(path), 0
        self._tensors = read_torch_file(path)
        self._mapped = is_mapped(path)
        self.shapes = {name: tuple(t.shape) for name, t in self._tensors.items()}
        self.dtypes = {name: str(t.dtype).removeprefix("torch.") for name, t in self._tensors.items()}

    def get(self, name: str) -> np.ndarray:
        """A copy of the tensor."""
        import torch

        tensor = self._tensors[name].detach().contiguous()
        words = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
        array = tensor.view(words).numpy().view(DTYPES[self.dtypes[name]]).copy()
        self._read += array.nbytes
        if self._mapped and self._read > _REMAP:
            del tensor
            self._tensors, self._read = read_torch_file(self.path), 0
        return array


class TensorTable:
    """All tensors of a folder of files.

    shapes, dtypes: by name. damage: what the index and the files do not agree on, one line each.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._owner: dict[str, Any] = {}
        files, index = _files(self.folder)
        announced = _announced(self.folder, index) if index else None
        missing = [name for name in files if not (self.folder / name).is_file()]
        if missing:
            shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
            raise InteropError(f"{self.folder / index} names {shown}, not there; download the missing files")
        self.damage: list[str] = []
        for name in files:
            self._add(self.folder / name, announced)
        for name in announced or ():
            if name not in self.shapes:
                self.damage.append(f"missing: {name}, which {index} places in {announced[name]}")

    def _add(self, path: Path, announced: dict[str, str] | None) -> None:
        reader = (SafetensorsReader if path.suffix == ".safetensors" else TorchReader)(path)
        for name in reader.shapes:
            if name in self._owner:
                self.damage.append(f"twice: {name} is in {self._owner[name].path.name} and in {path.name}")
            elif announced is not None and announced.get(name) != path.name:
                self.damage.append(f"unexpected: {name} in {path.name}, where the index has {announced.get(name)}")
            self._owner[name] = reader
            self.shapes[name], self.dtypes[name] = reader.shapes[name], reader.dtypes[name]

    def get(self, name: str) -> np.ndarray:
        """The tensor, freshly read."""
        return self._owner[name].get(name)


def _files(folder: Path) -> tuple[list[str], str]:
    """(names of the weight files, name of the index or ""); the first of `FORMS` that is there."""
    for single, index in FORMS:
        if (folder / index).is_file():
            return sorted(set(_announced(folder, index).values())), index
        if (folder / single).is_file():
            return [single], ""
    expected = ", ".join(name for form in FORMS for name in form)
    raise InteropError(f"{folder} holds no weights; expected one of {expected}")


def has_weights(folder: Path) -> bool:
    """Whether `TensorTable` finds files there; opens none."""
    return any((folder / name).is_file() for form in FORMS for name in form)


def _announced(folder: Path, index: str) -> dict[str, str]:
    table = read_json(folder / index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
        raise InteropError(f'{folder / index} has no table "weight_map"; download it again')
    outside = [file for file in table.values() if Path(file).name != file]
    if outside:
        raise InteropError(f"{folder / index} points outside its folder ({outside[0]}); nothing was read")
    return table


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; InteropError when there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InteropError(f"{path} is not there") from error
    except (OSError, ValueError) as error:
        raise InteropError(f"{path} is no readable JSON ({error})") from error
    if not isinstance(value, dict):
        raise InteropError(f"{path} holds {type(value).__name__}, expected an object")
    return value


def wrong_dtypes(dtypes: dict[str, str], names) -> list[str]:
    """A line for each of `names` whose type is none of `arrays.DTYPES`."""
    allowed = ", ".join(DTYPES)
    wrong = [name for name in names if dtypes.get(name, "float32") not in DTYPES]
    return [f"wrong type: {name} is {dtypes[name]}, must be one of {allowed}" for name in wrong]


def layer_count(names, pattern: str) -> int:
    """One more than the largest layer number that `pattern` (with one group) finds in the names."""
    found = [int(m.group(1)) for name in names if (m := re.match(pattern, name))]
    return max(found, default=-1) + 1


def first_rank(shapes: dict[str, tuple[int, ...]], suffix: str) -> tuple[str, int] | None:
    """(name, rank) of the first tensor whose name ends in `suffix`."""
    return next(((name, len(shape)) for name, shape in shapes.items() if name.endswith(suffix)), None)
