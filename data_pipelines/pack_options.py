"""What `pack_shards` is asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

from ar_omni_jax.documents import GROUPS

OVERLONG = ("error", "drop_counted", "split", "bucket")
BEYOND = OVERLONG[:3]


@dataclasses.dataclass(frozen=True)
class PackOptions:
    """length: tokens a row. overlong: what becomes of documents longer than a row ("error" names them, "drop_counted"
    leaves them out and lists them in dataset.json, "split" cuts them into pieces, "bucket" packs them in longer rows).
    unit_tokens: tokens packed at once, which bounds memory and sets the size of a shard. top_up: group whose documents
    also go where rows of the other groups have room, "" for none. bucket_lengths: tokens of the longer rows,
    ascending; a document goes to the shortest that hold it. beyond_buckets: what becomes of those longer than all."""

    length: int
    seed: int = 0
    overlong: str = "error"
    unit_tokens: int = 16_000_000
    top_up: str = ""
    bucket_lengths: tuple[int, ...] = ()
    beyond_buckets: str = "error"

    def __post_init__(self):
        if self.length < 2 or self.unit_tokens < 1:
            raise ValueError(f"length {self.length} must be at least 2 and unit_tokens {self.unit_tokens} at least 1")
        if self.overlong not in OVERLONG:
            raise ValueError(f"overlong {self.overlong!r} is not one of {', '.join(OVERLONG)}")
        if self.top_up and self.top_up not in GROUPS:
            raise ValueError(f"top_up {self.top_up!r} is not one of {', '.join(GROUPS)}")
        self._check_buckets()

    def _check_buckets(self) -> None:
        if self.beyond_buckets not in BEYOND:
            raise ValueError(f"beyond_buckets {self.beyond_buckets!r} is not one of {', '.join(BEYOND)}")
        if self.overlong != "bucket":
            if self.bucket_lengths or self.beyond_buckets != "error":
                raise ValueError(
                    "bucket_lengths and beyond_buckets change nothing without overlong=bucket; give it too"
                )
            return
        lengths = self.row_lengths
        if len(lengths) == 1 or list(lengths) != sorted(set(lengths)):
            raise ValueError(
                f"overlong=bucket needs bucket_lengths that ascend from above length {self.length}, such as "
                f"--bucket_lengths={4 * self.length}; got {list(self.bucket_lengths)}"
            )

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Tokens of the rows of each data set that is packed, ascending; one unless there are buckets."""
        return self.length, *self.bucket_lengths

    def for_rows(self, length: int) -> PackOptions:
        """What the data set of one of `row_lengths` is packed with, given the documents that belong there."""
        if length == self.length:
            return self
        rule = self.beyond_buckets if length == self.row_lengths[-1] else "error"
        return dataclasses.replace(self, length=length, overlong=rule, bucket_lengths=(), beyond_buckets="error")

    def settings(self) -> dict[str, Any]:
        """For dataset.json: as JSON, buckets only where there are any."""
        settings = dataclasses.asdict(self) | {"bucket_lengths": list(self.bucket_lengths)}
        if not self.bucket_lengths:
            del settings["bucket_lengths"], settings["beyond_buckets"]
        return settings
