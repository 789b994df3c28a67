"""PyTorch's zip format (.pth) written a tensor at a time; needs no PyTorch.

An archive holds `data.pkl`, the pickled dictionary in which each tensor names its storage, and one stored (never
compressed) record a storage, aligned to 64 bytes so that `torch.load(mmap=True)` can map it. `torch.save` would hold
all tensors at once.
"""

from __future__ import annotations

import math
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ar_omni_jax.interop.arrays import DTYPES, Specs

_STORAGES = {"float32": b"FloatStorage", "bfloat16": b"BFloat16Storage", "float16": b"HalfStorage"}
_ALIGNMENT = 64
_ROOT = "archive"
_DATE = (1980, 1, 1, 0, 0, 0)  # equal weights give equal files


class TorchWriter:
    """A .pth file of {name: tensor}, filled in any order.

    Args: specs: {name: (shape, dtype name of `arrays.DTYPES`)}; the order of the dictionary. under: the file holds
      {under: {name: tensor}} instead, as training programs write it ("state_dict").
    """

    def __init__(self, path: str | Path, specs: Specs, under: str = ""):
        self._specs, self._keys = dict(specs), {name: str(i) for i, name in enumerate(specs)}
        self._missing = set(specs)
        self._file = open(path, "wb")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._record("data.pkl", _pickled(self._specs, self._keys, under))
        self._record("byteorder", b"little")

    def _record(self, name: str, data) -> None:
        info = zipfile.ZipInfo(f"{_ROOT}/{name}", _DATE)
        info.file_size = len(data)
        # Local header: 30 bytes, the name, 20 bytes where sizes need 64 bits, then this padding field.
        big = len(data) * 1.05 > zipfile.ZIP64_LIMIT
        before = self._file.tell() + 30 + len(info.filename) + (20 if big else 0) + 4
        padding = -before % _ALIGNMENT
        info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        with self._zip.open(info, "w", force_zip64=big) as record:
            for at in range(0, len(data), 1 << 26):
                record.write(data[at : at + (1 << 26)])

    def write(self, name: str, array: np.ndarray) -> None:
        """Adds the bytes of one tensor."""
        shape, dtype = self._specs[name]
        if tuple(array.shape) != tuple(shape) or array.dtype != DTYPES[dtype] or name not in self._missing:
            raise ValueError(f"{name}: planned {dtype}{list(shape)} once, got {array.dtype}{list(array.shape)}")
        self._record(f"data/{self._keys[name]}", memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
        self._missing.discard(name)

    def close(self) -> None:
        """Ends the file; ValueError when a planned tensor was never written."""
        if self._missing:
            raise ValueError(f"never written: {sorted(self._missing)[:5]}")
        self._record("version", b"3\n")
        self._zip.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _pickled(specs: Specs, keys: Mapping[str, str], under: str) -> bytes:
    """The pickle (protocol 2) of {name: tensor}: each a call of torch's rebuild function on a storage by its key."""
    out = [b"\x80\x02", *((b"}(", _text(under)) if under else ()), b"}("]
    for name, (shape, dtype) in specs.items():
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        out += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n((", _text("storage")]
        out += [b"ctorch\n", _STORAGES[dtype], b"\n", _text(keys[name]), _text("cpu"), _integer(math.prod(shape))]
        out += [b"tQ", _integer(0), _integers(shape), _integers(strides), b"\x89"]
        out += [b"ccollections\nOrderedDict\n)R", b"tR"]
    return b"".join(out) + (b"uu." if under else b"u.")


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    return pickle.dumps(int(value), 2)[2:-1]


def _integers(values) -> bytes:
    return b"(" + b"".join(_integer(v) for v in values) + b"t"
