"""safetensors files read and written a tensor at a time, in any order.

The format: a little-endian uint64 N, N bytes of JSON {name: {dtype, shape, data_offsets}}, then the tensors' bytes
without gaps. The places of all tensors follow from their shapes, so a writer need not hold more than one. (The
`safetensors` package writes whole files at once.)
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np

from ar_omni_jax.interop.arrays import DTYPES, Specs, byte_sizes
from ar_omni_jax.interop.errors import InteropError

CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_NAMES = {code: name for name, code in CODES.items()}
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2}
_SIZES |= {"BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}
_MAX_HEADER = 100_000_000


class SafetensorsReader:
    """The tensors of one file. Only the header is read at first; InteropError when it does not fit the file.

    shapes: {name: shape}. dtypes: {name: "float32" | "bfloat16" | "float16", or the file's own word for others}.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            header, self._start = self._header()
        except OSError as error:
            raise InteropError(f"{self.path} cannot be read ({error})") from error
        header.pop("__metadata__", None)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._places: dict[str, tuple[int, int]] = {}
        for name, entry in header.items():
            try:
                self.shapes[name] = tuple(int(n) for n in entry["shape"])
                code, (begin, end) = entry["dtype"], map(int, entry["data_offsets"])
            except (KeyError, TypeError, ValueError) as error:
                raise self._damaged(f"the entry of {name} is malformed") from error
            if code in _SIZES and end - begin != math.prod(self.shapes[name]) * _SIZES[code]:
                raise self._damaged(f"{name} takes {end - begin} bytes, its shape and type need another number")
            self.dtypes[name], self._places[name] = _NAMES.get(code, str(code)), (begin, end)
        self._require_no_gaps()

    def _header(self) -> tuple[dict, int]:
        size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise self._damaged(f"its header of {length} bytes does not fit the file of {size}")
            try:
                header = json.loads(file.read(length))
            except ValueError as error:
                raise self._damaged("its header is not JSON") from error
        if not isinstance(header, dict):
            raise self._damaged("its header is no table of tensors")
        return header, 8 + length

    def _require_no_gaps(self) -> None:
        at = 0
        for begin, end in sorted(self._places.values()):
            if begin != at or end < begin:
                raise self._damaged("its tensors overlap or leave gaps")
            at = end
        size = self.path.stat().st_size
        if self._start + at != size:
            raise self._damaged(f"{self._start + at} bytes are announced, the file has {size}: a cut-off download?")

    def _damaged(self, why: str) -> InteropError:
        return InteropError(f"{self.path} is damaged ({why}); download or export it again")

    def get(self, name: str) -> np.ndarray:
        """The tensor, freshly read; its type must be one of `arrays.DTYPES`."""
        begin, end = self._places[name]
        array = np.empty(self.shapes[name], DTYPES[self.dtypes[name]])
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self._start + begin)
            view, at = memoryview(array.reshape(-1).view(np.uint8)), 0
            while at < end - begin:
                read = file.readinto(view[at : at + (1 << 30)])
                if not read:
                    raise self._damaged(f"{name} ends early")
                at += read
        return array


class SafetensorsWriter:
    """A file with room for the named tensors, to be filled in any order.

    Args: specs: {name: (shape, dtype name of `arrays.DTYPES`)}.
    """

    def __init__(self, path: str | Path, specs: Specs):
        header, at, sizes = {"__metadata__": {"format": "pt"}}, 0, byte_sizes(specs)
        for name, (shape, dtype) in specs.items():
            size = sizes[name]
            header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start, self._header, self._missing = 8 + len(text), header, set(specs)
        self._file = open(path, "wb", buffering=0)
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._start + at)

    def write(self, name: str, array: np.ndarray) -> None:
        """Puts one tensor in its place."""
        entry = self._header[name]
        if list(array.shape) != entry["shape"] or CODES.get(array.dtype.name) != entry["dtype"]:
            raise ValueError(f"{name}: planned {entry}, got {array.dtype}{list(array.shape)}")
        data, at = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)), 0
        while at < len(data):
            at += os.pwrite(self._file.fileno(), data[at : at + (1 << 30)], self._start + entry["data_offsets"][0] + at)
        self._missing.discard(name)

    def close(self) -> None:
        """Ends the file; ValueError when a planned tensor was never written."""
        if self._missing:
            raise ValueError(f"never written: {sorted(self._missing)[:5]}")
        os.fsync(self._file.fileno())
        self._file.close()
