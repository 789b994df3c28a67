"""The codec as one module: encoder, codebook, backbone, head."""

import jax
import jax.numpy as jnp
from flax import nnx

from ar_omni_jax.tokenizers.speech.backbone import Backbone
from ar_omni_jax.tokenizers.speech.config import SpeechCodecConfig
from ar_omni_jax.tokenizers.speech.encoder import Encoder
from ar_omni_jax.tokenizers.speech.head import ISTFTHead
from ar_omni_jax.tokenizers.speech.quantizer import Codebook
from ar_omni_jax.tokenizers.speech.source import PitchReader, SourceFilterHead


class SpeechCodec(nnx.Module):
    """Waveform [B, T] float32 in [-1, 1] <-> codes int32 [B, ceil(T / hop)].

    Causal codecs: code i depends on samples before (i + 1) * hop + lookahead only, and sample t of the
    output on codes up to t // hop only.
    """

    def __init__(self, config: SpeechCodecConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.codebook = Codebook(config.codebook_size, config.encoder.dimension, rngs=rngs)
        self.backbone = Backbone(config, rngs=rngs)
        source = config.head.source_filter
        self.pitch = PitchReader(config, rngs=rngs) if source else None
        self.head = SourceFilterHead(config, rngs=rngs) if source else ISTFTHead(config, rngs=rngs)

    def embed(self, wav: jax.Array) -> jax.Array:
        """[B, T] -> encoder output [B, n, dimension]."""
        return self.encoder(wav)

    def encode(self, wav: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """[B, T] -> codes int32 [B, n].

        lengths: int [B], of a codec that is not causal and T whole hops: row b is lengths[b] samples long, and its
        first ceil(lengths[b] / hop) codes are those that it has alone.
        """
        return self.codebook.nearest(self.encoder(wav, lengths))

    def synthesize(self, features: jax.Array, row: int = 0) -> jax.Array:
        """Code vectors [B, n, dimension] -> samples [B, n * hop]; `row` picks the AdaLayerNorm row."""
        hidden = self.backbone(features, row)
        return self.head(hidden) if self.pitch is None else self.head(hidden, self.pitch.increments(features))

    def _increments(self, codes: jax.Array) -> tuple[jax.Array, ...]:
        """The head's second argument, if it has one. Read off the whole codebook rather than `codes` alone, so
        that rounding cannot depend on how many codes come at once."""
        if self.pitch is None:
            return ()
        return (jnp.take(self.pitch.increments(self.codebook.embed[...]), codes, axis=0),)

    def decode(self, codes: jax.Array, row: int = 0) -> jax.Array:
        """codes [B, n] -> samples [B, n * hop]."""
        return self.head(self.backbone(self.codebook.lookup(codes), row), *self._increments(codes))

    def init_stream(self, batch: int) -> dict:
        """State of `decode_stream` before the first code."""
        if not self.config.causal:
            raise ValueError(
                "speech codec: this codec is not causal, so it has no exact streaming state; "
                "decode windows of codes with context on both sides instead"
            )
        return {"backbone": self.backbone.init_stream(batch), "head": self.head.init_stream(batch)}

    def decode_stream(self, state: dict, codes: jax.Array, row: int = 0) -> tuple[dict, jax.Array]:
        """Next codes [B, n] -> (state, the next n * hop samples), equal to offline decoding."""
        backbone, features = self.backbone.stream(state["backbone"], self.codebook.lookup(codes), row)
        head, samples = self.head.stream(state["head"], features, *self._increments(codes))
        return {"backbone": backbone, "head": head}, samples
