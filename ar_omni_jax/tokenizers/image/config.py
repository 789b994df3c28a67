"""Configuration of a VQGAN image tokenizer (the taming-transformers family that Chameleon's belongs to)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

# Keys of a published "ddconfig"; the rest of VQGANConfig stands beside it in such a file.
_DDCONFIG = (
    "ch",
    "ch_mult",
    "num_res_blocks",
    "attn_resolutions",
    "z_channels",
    "resolution",
    "in_channels",
    "out_ch",
    "double_z",
    "dropout",
    "num_groups",
)


@dataclass(frozen=True)
class VQGANConfig:
    """Shapes of encoder, codebook and decoder. Names follow the published `ddconfig`.

    `resolution` is the side of the square picture in pixels; each stage but the last halves it, so the grid
    of codes has side resolution / 2^(stages - 1). `num_groups` (of GroupNorm) is 32 in published checkpoints.
    """

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = ()
    z_channels: int = 256
    resolution: int = 512
    in_channels: int = 3
    out_ch: int = 3
    double_z: bool = False
    dropout: float = 0.0
    num_groups: int = 32
    n_embed: int = 8192
    embed_dim: int = 256

    def __post_init__(self) -> None:
        if not self.ch_mult or min(self.ch_mult) < 1:
            raise ValueError(f"ch_mult must be one positive factor a stage, got {self.ch_mult}")
        for name in (
            "ch",
            "num_res_blocks",
            "z_channels",
            "resolution",
            "num_groups",
            "n_embed",
            "embed_dim",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.resolution % self.downsampling:
            raise ValueError(f"resolution {self.resolution} is not a multiple of {self.downsampling} (ch_mult)")
        for factor in self.ch_mult:
            if self.ch * factor % self.num_groups:
                raise ValueError(f"{self.ch * factor} channels do not divide into num_groups={self.num_groups}")
        if self.in_channels != 3 or self.out_ch != 3:
            raise ValueError(f"pictures are RGB: in_channels {self.in_channels}, out_ch {self.out_ch} must be 3")
        if self.double_z:
            raise ValueError("double_z belongs to the KL autoencoders of the family; a VQGAN has double_z false")
        if self.dropout:
            raise ValueError(f"dropout {self.dropout} is not supported: the tokenizer is used frozen, set it to 0")

    @property
    def downsampling(self) -> int:
        """Pixels along a side of one code's patch."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of codes of a picture."""
        side = self.resolution // self.downsampling
        return side, side

    def to_dict(self) -> dict[str, Any]:
        """The published nesting: {"ddconfig": {...}, "n_embed", "embed_dim"}; JSON types only."""
        flat = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        ddconfig = {key: flat.pop(key) for key in _DDCONFIG}
        return {"ddconfig": ddconfig, **flat}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VQGANConfig:
        """Reads the nesting of `to_dict` (or flat keys). ValueError names keys that it does not know."""
        flat = {**values.get("ddconfig", {}), **{k: v for k, v in values.items() if k != "ddconfig"}}
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(flat) - known)
        if unknown:
            raise ValueError(f"unknown VQGAN config keys {unknown}; known are {sorted(known)}")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in flat.items()})


CHAMELEON = VQGANConfig()
"""Chameleon's tokenizer: 512x512 pixels to 32x32 codes of 8192; 27.19 M + 39.29 M parameters."""
