"""WavTokenizer's published tensors and this codec's own, one rule a tensor, readable in both directions."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from flax import nnx

from ar_omni_jax.tokenizers.speech.codec import SpeechCodec
from ar_omni_jax.tokenizers.speech.config import SpeechCodecConfig
from ar_omni_jax.tokenizers.speech.weights import assemble

ENCODER = "feature_extractor.encodec.encoder.model."
QUANTIZER = "feature_extractor.encodec.quantizer.vq.layers.0._codebook."
CODEBOOK = f"{QUANTIZER}embed"


@dataclasses.dataclass(frozen=True)
class Rule:
    """One own tensor and the published ones that make it.

    read: the tensors of `keys`, in their order -> the own one. write: the own one -> those of `keys`.
    `write(read(...))` may differ from what was read (weight norm, two biases that are added), `read(write(x))` is x to
    the bit.
    """

    own: str
    keys: tuple[str, ...]
    read: Callable[..., np.ndarray]
    write: Callable[[np.ndarray], tuple[np.ndarray, ...]]


def _row_norms(v: np.ndarray) -> np.ndarray:
    """float64 [O, 1, 1]: norms over all axes but the first."""
    return np.sqrt(np.sum(np.square(v, dtype=np.float64), axis=(1, 2), keepdims=True))


def fold_weight_norm(g: np.ndarray, v: np.ndarray) -> np.ndarray:
    """w = g v / ||v||, the norm over all axes but the first: v [O, I, K], g [O, 1, 1] -> float32 [O, I, K].

    A row whose g is the float32 nearest to ||v|| is v itself: the quotient would differ from it by the rounding of g
    alone. So `split_weight_norm` is undone to the bit.
    """
    norm = _row_norms(v)
    with np.errstate(divide="ignore", invalid="ignore"):  # a row of zeros has no direction: NaN, as in PyTorch
        folded = (g * (v / norm)).astype(np.float32)
    return np.where((g == norm.astype(np.float32)) & (norm > 0), v, folded)


def split_weight_norm(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(g [O, 1, 1], v [O, I, K]) with g v / ||v|| = w: v = w and g its norm; a row of zeros has g = 0 and v = 1."""
    norm = _row_norms(w).astype(np.float32)
    return norm, np.where(norm > 0, w, np.float32(1.0))


def _plain(own: str, key: str) -> list[Rule]:
    return [Rule(own, (key,), lambda x: x, lambda x: (x,))]


def _normed_conv(own: str, key: str) -> list[Rule]:
    """Kernel [K, I, O] and bias under `own`, weight norm (g, v [O, I, K]) and bias under `key`."""
    conv = f"{key}.conv.conv"
    kernel = Rule(
        f"{own}.kernel",
        (f"{conv}.weight_g", f"{conv}.weight_v"),
        lambda g, v: fold_weight_norm(g, v).transpose(2, 1, 0),
        lambda x: split_weight_norm(x.transpose(2, 1, 0)),
    )
    return [kernel, *_plain(f"{own}.bias", f"{conv}.bias")]


def _weighted(own: str, key: str, read: Callable, write: Callable) -> list[Rule]:
    """`own`.kernel from `key`.weight, and the bias as it is."""
    kernel = Rule(f"{own}.kernel", (f"{key}.weight",), read, lambda x: (write(x),))
    return [kernel, *_plain(f"{own}.bias", f"{key}.bias")]


def _conv(own: str, key: str) -> list[Rule]:
    return _weighted(own, key, lambda w: w.transpose(2, 1, 0), lambda x: x.transpose(2, 1, 0))


def _pointwise(own: str, key: str) -> list[Rule]:
    """A 1x1 convolution [O, I, 1] as a matrix [I, O]."""
    return _weighted(own, key, lambda w: w[:, :, 0].T, lambda x: x.T[:, :, None])


def _linear(own: str, key: str) -> list[Rule]:
    return _weighted(own, key, lambda w: w.T, lambda x: x.T)


def _group_norm(own: str, key: str) -> list[Rule]:
    return [*_plain(f"{own}.scale", f"{key}.weight"), *_plain(f"{own}.bias", f"{key}.bias")]


def _ada_norm(own: str, key: str) -> list[Rule]:
    return [*_plain(f"{own}.scale", f"{key}.scale.weight"), *_plain(f"{own}.shift", f"{key}.shift.weight")]


def _lstm(own: str, key: str, layer: int) -> list[Rule]:
    """PyTorch adds two biases; they are one here. On the way out the second is -0.0, the number whose addition
    changes no bit of the first."""
    return [
        Rule(f"{own}.input_kernel", (f"{key}weight_ih_l{layer}",), lambda w: w.T, lambda x: (x.T,)),
        Rule(f"{own}.hidden_kernel", (f"{key}weight_hh_l{layer}",), lambda w: w.T, lambda x: (x.T,)),
        Rule(
            f"{own}.bias",
            (f"{key}bias_ih_l{layer}", f"{key}bias_hh_l{layer}"),
            lambda a, b: a + b,
            lambda x: (x, np.full_like(x, -0.0)),
        ),
    ]


def _encoder(config: SpeechCodecConfig) -> list[Rule]:
    rules = _normed_conv("encoder.first", f"{ENCODER}0")
    index = 1
    for i in range(len(config.encoder.ratios)):  # residual block, ELU, strided convolution
        rules += _normed_conv(f"encoder.residual.{i}.conv", f"{ENCODER}{index}.block.1")
        rules += _normed_conv(f"encoder.residual.{i}.project", f"{ENCODER}{index}.block.3")
        rules += _normed_conv(f"encoder.residual.{i}.shortcut", f"{ENCODER}{index}.shortcut")
        rules += _normed_conv(f"encoder.down.{i}", f"{ENCODER}{index + 2}")
        index += 3
    for i in range(config.encoder.lstm_layers):
        rules += _lstm(f"encoder.lstm.{i}", f"{ENCODER}{index}.lstm.", i)
    rules += _normed_conv("encoder.last", f"{ENCODER}{index + (2 if config.encoder.lstm_layers else 1)}")
    return rules + _plain("codebook.embed", CODEBOOK)


def _position_net() -> list[Rule]:
    rules = []
    for own, i in (("before.0", 0), ("before.1", 1), ("after.0", 3), ("after.1", 4)):
        for j in (1, 2):
            rules += _group_norm(f"backbone.position_net.{own}.norm{j}", f"backbone.pos_net.{i}.norm{j}")
            rules += _conv(f"backbone.position_net.{own}.conv{j}", f"backbone.pos_net.{i}.conv{j}")
    rules += _group_norm("backbone.position_net.attention.norm", "backbone.pos_net.2.norm")
    for name in ("q", "k", "v", "proj_out"):
        rules += _pointwise(f"backbone.position_net.attention.{name}", f"backbone.pos_net.2.{name}")
    return rules + _group_norm("backbone.position_net.norm", "backbone.pos_net.5")


def _decoder(config: SpeechCodecConfig) -> list[Rule]:
    rules = _conv("backbone.embed", "backbone.embed")
    rules += _position_net() if config.backbone.position_net else []
    rules += _ada_norm("backbone.norm", "backbone.norm")
    for i in range(config.backbone.num_layers):
        own, key = f"backbone.blocks.{i}", f"backbone.convnext.{i}"
        rules += _weighted(f"{own}.depthwise", f"{key}.dwconv", lambda w: w[:, 0].T, lambda x: x.T[:, None])
        rules += _ada_norm(f"{own}.norm", f"{key}.norm")
        rules += _linear(f"{own}.expand", f"{key}.pwconv1") + _linear(f"{own}.contract", f"{key}.pwconv2")
        rules += _plain(f"{own}.gamma", f"{key}.gamma")
    rules += _plain("backbone.final_scale", "backbone.final_layer_norm.weight")
    rules += _plain("backbone.final_bias", "backbone.final_layer_norm.bias")
    return rules + _linear("head.out", "head.out")


def published_rules(config: SpeechCodecConfig) -> list[Rule]:
    """One rule for every own tensor of a codec that WavTokenizer's layout can hold."""
    return _encoder(config) + _decoder(config)


def published_shapes(config: SpeechCodecConfig) -> dict[str, tuple[int, ...]]:
    """{published key: shape} of every tensor that the codec is made of; the codec itself is not allocated."""
    state = nnx.state(nnx.eval_shape(lambda: SpeechCodec(config, rngs=nnx.Rngs(0))), nnx.Param)
    own = {".".join(map(str, path)): tuple(param.shape) for path, param in nnx.to_flat_state(state)}
    shapes = {}
    for rule in published_rules(config):
        # A view of one number stands for the tensor, so that rules say their own shapes.
        parts = rule.write(np.broadcast_to(np.float32(1.0), own.pop(rule.own)))
        shapes |= {key: part.shape for key, part in zip(rule.keys, parts, strict=True)}
    if own:
        raise ValueError(f"WavTokenizer's layout has no place for {', '.join(sorted(own)[:5])} ({len(own)} tensors)")
    return shapes


def translate_published(tensors: Mapping[str, np.ndarray], config: SpeechCodecConfig) -> dict[str, np.ndarray]:
    """Published state dict (weight norm as g, v) -> own flat names, float32, weight norm folded."""
    result = {}
    for rule in published_rules(config):
        for key in rule.keys:
            if key not in tensors:
                raise KeyError(
                    f"published speech codec: key {key!r} is missing from the weights; expected a WavTokenizer "
                    "state dict with keys under 'feature_extractor.', 'backbone.' and 'head.'"
                )
        result[rule.own] = rule.read(*(np.asarray(tensors[key], np.float32) for key in rule.keys))
    return result


def to_published(tensors: Mapping[str, np.ndarray], config: SpeechCodecConfig) -> dict[str, np.ndarray]:
    """Own flat names -> published ones, float32 and contiguous; `translate_published` gives `tensors` to the bit."""
    result = {}
    for rule in published_rules(config):
        parts = rule.write(np.asarray(tensors[rule.own], np.float32))
        result |= {key: np.ascontiguousarray(part) for key, part in zip(rule.keys, parts, strict=True)}
    return result


def load_published(tensors: Mapping[str, np.ndarray], config: SpeechCodecConfig) -> SpeechCodec:
    """Codec from a WavTokenizer state dict. Keys the codec has no use for (`feature_extractor.encodec.
    decoder.*`, EMA statistics, the iSTFT window) are passed over; a missing key or wrong shape raises."""
    return assemble(config, translate_published(tensors, config))
