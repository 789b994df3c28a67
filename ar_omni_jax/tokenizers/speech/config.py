"""Shape of a WavTokenizer-family speech codec: encoder, codebook, backbone, iSTFT head.

Two members of the family are written out here: the published non-causal 24 kHz codec
(`wavtokenizer_smalldata_frame40_3s_nq1_code4096_dim512_kmeans200_attn`) and the small causal
16 kHz codec whose weights ship with this package.
"""

import dataclasses
import json
import math


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """SEANet encoder. Strides are `ratios` reversed; each halves the rate's channels upwards."""

    n_filters: int = 32
    dimension: int = 512
    ratios: tuple[int, ...] = (6, 5, 5, 4)
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    compress: int = 2
    lstm_layers: int = 2
    # Samples beyond the end of its own hop that a code may see. Causal codecs only; 0 <= lookahead < hop.
    lookahead: int = 0
    # Scale every output vector to unit mean square, which keeps the codebook's scale from drifting.
    normalize: bool = False

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(reversed(self.ratios))

    @property
    def hop_length(self) -> int:
        return math.prod(self.ratios)


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Vocos backbone. `position_net` is the GroupNorm + self-attention stack (non-causal only).

    With `upsample` > 1 a second stack of ConvNeXt blocks runs at `upsample` frames a code, so that
    the iSTFT head can use windows short enough for speech.
    """

    dim: int = 768
    intermediate_dim: int = 2304
    num_layers: int = 12
    adanorm_num_embeddings: int = 4
    position_net: bool = True
    upsample: int = 1
    upsampled_dim: int = 0
    upsampled_intermediate_dim: int = 0
    upsampled_layers: int = 0

    @property
    def output_dim(self) -> int:
        return self.upsampled_dim if self.upsample > 1 else self.dim


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """iSTFT head: `n_fft` samples a window, `hop_length` samples between windows.

    `source_filter` replaces predicted phases by filtered pulses and noise (causal codecs; see source.py).
    """

    n_fft: int = 2400
    hop_length: int = 600
    source_filter: bool = False


@dataclasses.dataclass(frozen=True)
class SpeechCodecConfig:
    """Whole codec. `causal` chooses left zero padding and a streamable decoder for every layer."""

    encoder: EncoderConfig = EncoderConfig()
    backbone: BackboneConfig = BackboneConfig()
    head: HeadConfig = HeadConfig()
    codebook_size: int = 4096
    sample_rate: int = 24000
    causal: bool = False

    def __post_init__(self):
        hop = self.encoder.hop_length
        if self.head.hop_length * self.backbone.upsample != hop:
            raise ValueError(
                f"speech codec: the encoder makes one code every {hop} samples, but the decoder makes "
                f"{self.head.hop_length} x {self.backbone.upsample} = "
                f"{self.head.hop_length * self.backbone.upsample} samples a code; "
                "make head.hop_length * backbone.upsample equal to the product of encoder.ratios"
            )
        if self.head.n_fft % self.head.hop_length or self.head.n_fft < 2 * self.head.hop_length:
            raise ValueError(
                f"speech codec: head.n_fft={self.head.n_fft} must be a multiple of head.hop_length="
                f"{self.head.hop_length}, at least twice it"
            )
        if self.causal and self.backbone.position_net:
            raise ValueError("speech codec: backbone.position_net looks at all of time; it needs causal=False")
        if self.head.source_filter and not self.causal:
            raise ValueError("speech codec: head.source_filter carries phase forwards in time; it needs causal=True")
        if not 0 <= self.encoder.lookahead < hop or (self.encoder.lookahead and not self.causal):
            raise ValueError(
                f"speech codec: encoder.lookahead={self.encoder.lookahead} must be in [0, {hop}) "
                "and is for causal codecs only"
            )

    @property
    def hop_length(self) -> int:
        """Samples a code."""
        return self.encoder.hop_length

    @property
    def tokens_per_second(self) -> float:
        return self.sample_rate / self.hop_length

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_dict(cls, values: dict) -> "SpeechCodecConfig":
        """Inverse of `dataclasses.asdict`; an unknown key is an error that names it."""
        values = dict(values)
        encoder = dict(values.pop("encoder", {}))
        if "ratios" in encoder:
            encoder["ratios"] = tuple(encoder["ratios"])
        try:
            return cls(
                encoder=EncoderConfig(**encoder),
                backbone=BackboneConfig(**values.pop("backbone", {})),
                head=HeadConfig(**values.pop("head", {})),
                **values,
            )
        except TypeError as error:
            raise ValueError(f"speech codec config: {error}") from error


def published_config() -> SpeechCodecConfig:
    """WavTokenizer small, 24 kHz, 40 tokens/s, 4096 codes."""
    return SpeechCodecConfig()


def default_config() -> SpeechCodecConfig:
    """Causal 16 kHz codec of the shipped weights: 40 tokens/s, windows of 25 ms every 6.25 ms."""
    return SpeechCodecConfig(
        encoder=EncoderConfig(
            n_filters=8,
            dimension=64,
            ratios=(4, 4, 5, 5),
            lstm_layers=1,
            lookahead=300,
            normalize=True,
        ),
        backbone=BackboneConfig(
            dim=256,
            intermediate_dim=512,
            num_layers=3,
            adanorm_num_embeddings=1,
            position_net=False,
            upsample=4,
            upsampled_dim=128,
            upsampled_intermediate_dim=256,
            upsampled_layers=3,
        ),
        head=HeadConfig(n_fft=400, hop_length=100, source_filter=True),
        codebook_size=2048,
        sample_rate=16000,
        causal=True,
    )
