"""How a benchmark ends: its table for people, its record for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ar_omni_jax.files import replace_file


def write_record(record: Mapping[str, Any], output: Path) -> None:
    """Writes the record as JSON, whole or not at all."""
    replace_file(output, (json.dumps(record, indent=1) + "\n").encode())


def publish(record: Mapping[str, Any], table: str, output: Path) -> None:
    """Prints the table, writes the record, says where."""
    print(table)
    write_record(record, output)
    print(f"wrote {output}")
