"""What the benchmark of an accelerator measures: settings of the training step, most wanted first.

The points with one document a row are the best of what `compile_check --search --target=h200-1` found without an H200
(docs/scale.md); packed rows and layers that are written out stand beside them, and come last.
"""

from __future__ import annotations

import dataclasses

PRETRAIN, INSTRUCT = "configs/pretrain_7b.py", "configs/instruct_7b.py"
Settings = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Point:
    """One training step to measure.

    Attributes:
      size: of SHAPES. rows: a device. documents: of a row. One: plain causal attention, which every kernel computes;
        several: packed rows, which need segment ids. spec, others: config file and what else differs from it.
    """

    size: str
    rows: int
    remat: str
    documents: int = 1
    spec: str = PRETRAIN
    others: Settings = ()

    @property
    def name(self) -> str:
        """Unlike every other point's."""
        stage = "" if self.spec == PRETRAIN else "instruct "
        words = [f"{self.size} {stage}{self.rows} x {self.remat}", *(f"{k}={v}" for k, v in self.others)]
        return ", ".join([*words, *([f"{self.documents} documents a row"] if self.documents > 1 else [])])

    def settings(self, devices: int) -> list[tuple[str, str]]:
        """Overrides of the config on so many devices."""
        packed = ("model.packed_rows", str(self.documents > 1).lower())
        batch = ("data.batch_size", str(self.rows * devices))
        return [*SHAPES[self.size], ("model.remat", self.remat), packed, batch, *self.others]


def _shape(layers: int, width: int, heads: int, feed_forward: int, head_dim: int = 128) -> Settings:
    found = {"num_layers": layers, "d_model": width, "num_heads": heads, "num_kv_heads": heads}
    found |= {"d_ff": feed_forward, "head_dim": head_dim}
    return tuple((f"model.{name}", str(value)) for name, value in found.items())


SHAPES: dict[str, Settings] = {
    "tiny": (*_shape(2, 32, 2, 48, 16), ("data.length", "64"), ("model.dtype", "float32")),  # for tests, on a CPU
    "1b": _shape(16, 2048, 16, 5504),  # 1.08e9 parameters
    "7b": (),
}
_HALF = (("optimizer.moment_dtype", "bfloat16"),)  # float32 moments leave an H200 no room for the 7B's activations
_BLOCKED = (("model.attention", "blocked"),)
POINTS = (
    Point("1b", 32, "zero_recompute"),
    Point("7b", 7, "zero_recompute", others=_HALF),
    Point("1b", 48, "zero_recompute"),
    Point("7b", 8, "zero_recompute", others=_HALF),
    Point("7b", 3, "zero_recompute", spec=INSTRUCT, others=_HALF),
    Point("1b", 32, "zero_recompute", documents=4, others=_BLOCKED),
    Point("7b", 7, "zero_recompute", documents=4, others=(*_HALF, *_BLOCKED)),
    Point("1b", 32, "zero_recompute", others=(("model.scan_layers", "false"),)),
    Point("tiny", 2, "zero_recompute"),
    Point("tiny", 2, "none", documents=2, others=_BLOCKED),
)
SIZES = tuple(SHAPES)
