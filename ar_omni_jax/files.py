"""Atomic files."""

import os
from pathlib import Path


def replace_file(path: str | Path, data: bytes) -> None:
    """Writes `data` to `path` so that a reader or a crash sees the old file or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
