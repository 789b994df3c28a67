"""Parameters under WavTokenizer's published key names to this codec's own."""

import numpy as np

from ar_omni_jax.tokenizers.speech.codec import SpeechCodec
from ar_omni_jax.tokenizers.speech.config import SpeechCodecConfig
from ar_omni_jax.tokenizers.speech.weights import assemble

ENCODER = "feature_extractor.encodec.encoder.model."
CODEBOOK = "feature_extractor.encodec.quantizer.vq.layers.0._codebook.embed"


def fold_weight_norm(g: np.ndarray, v: np.ndarray) -> np.ndarray:
    """w = g v / ||v||, the norm over all axes but the first: v [O, I, K], g [O, 1, 1] -> [O, I, K]."""
    norm = np.sqrt(np.sum(np.square(v.astype(np.float64)), axis=(1, 2), keepdims=True))
    return (g * (v / norm)).astype(np.float32)


class _Translator:
    """Reads published tensors by name and files them under own names; knows every name it used."""

    def __init__(self, tensors: dict[str, np.ndarray]):
        self.tensors, self.result = tensors, {}

    def get(self, key: str) -> np.ndarray:
        if key not in self.tensors:
            raise KeyError(
                f"published speech codec: key {key!r} is missing from the weights; expected a WavTokenizer "
                "state dict with keys under 'feature_extractor.', 'backbone.' and 'head.'"
            )
        return np.asarray(self.tensors[key], np.float32)

    def normed_conv(self, own: str, key: str):
        kernel = fold_weight_norm(self.get(f"{key}.conv.conv.weight_g"), self.get(f"{key}.conv.conv.weight_v"))
        self.result[f"{own}.kernel"] = kernel.transpose(2, 1, 0)
        self.result[f"{own}.bias"] = self.get(f"{key}.conv.conv.bias")

    def conv(self, own: str, key: str):
        self.result[f"{own}.kernel"] = self.get(f"{key}.weight").transpose(2, 1, 0)
        self.result[f"{own}.bias"] = self.get(f"{key}.bias")

    def linear(self, own: str, key: str):
        """Dense layers and 1x1 convolutions."""
        weight = self.get(f"{key}.weight")
        self.result[f"{own}.kernel"] = weight.reshape(weight.shape[:2]).T
        self.result[f"{own}.bias"] = self.get(f"{key}.bias")

    def group_norm(self, own: str, key: str):
        self.result[f"{own}.scale"] = self.get(f"{key}.weight")
        self.result[f"{own}.bias"] = self.get(f"{key}.bias")

    def ada_norm(self, own: str, key: str):
        self.result[f"{own}.scale"] = self.get(f"{key}.scale.weight")
        self.result[f"{own}.shift"] = self.get(f"{key}.shift.weight")


def _encoder(t: _Translator, config: SpeechCodecConfig):
    t.normed_conv("encoder.first", f"{ENCODER}0")
    index = 1
    for i in range(len(config.encoder.ratios)):  # residual block, ELU, strided convolution
        t.normed_conv(f"encoder.residual.{i}.conv", f"{ENCODER}{index}.block.1")
        t.normed_conv(f"encoder.residual.{i}.project", f"{ENCODER}{index}.block.3")
        t.normed_conv(f"encoder.residual.{i}.shortcut", f"{ENCODER}{index}.shortcut")
        t.normed_conv(f"encoder.down.{i}", f"{ENCODER}{index + 2}")
        index += 3
    for i in range(config.encoder.lstm_layers):
        key, own = f"{ENCODER}{index}.lstm.", f"encoder.lstm.{i}"
        t.result[f"{own}.input_kernel"] = t.get(f"{key}weight_ih_l{i}").T
        t.result[f"{own}.hidden_kernel"] = t.get(f"{key}weight_hh_l{i}").T
        t.result[f"{own}.bias"] = t.get(f"{key}bias_ih_l{i}") + t.get(f"{key}bias_hh_l{i}")
    t.normed_conv("encoder.last", f"{ENCODER}{index + (2 if config.encoder.lstm_layers else 1)}")
    t.result["codebook.embed"] = t.get(CODEBOOK)


def _position_net(t: _Translator):
    for own, i in (("before.0", 0), ("before.1", 1), ("after.0", 3), ("after.1", 4)):
        for j in (1, 2):
            t.group_norm(f"backbone.position_net.{own}.norm{j}", f"backbone.pos_net.{i}.norm{j}")
            t.conv(f"backbone.position_net.{own}.conv{j}", f"backbone.pos_net.{i}.conv{j}")
    t.group_norm("backbone.position_net.attention.norm", "backbone.pos_net.2.norm")
    for name in ("q", "k", "v", "proj_out"):
        t.linear(f"backbone.position_net.attention.{name}", f"backbone.pos_net.2.{name}")
    t.group_norm("backbone.position_net.norm", "backbone.pos_net.5")


def _decoder(t: _Translator, config: SpeechCodecConfig):
    t.conv("backbone.embed", "backbone.embed")
    if config.backbone.position_net:
        _position_net(t)
    t.ada_norm("backbone.norm", "backbone.norm")
    for i in range(config.backbone.num_layers):
        own, key = f"backbone.blocks.{i}", f"backbone.convnext.{i}"
        t.result[f"{own}.depthwise.kernel"] = t.get(f"{key}.dwconv.weight")[:, 0].T
        t.result[f"{own}.depthwise.bias"] = t.get(f"{key}.dwconv.bias")
        t.ada_norm(f"{own}.norm", f"{key}.norm")
        t.linear(f"{own}.expand", f"{key}.pwconv1")
        t.linear(f"{own}.contract", f"{key}.pwconv2")
        t.result[f"{own}.gamma"] = t.get(f"{key}.gamma")
    t.result["backbone.final_scale"] = t.get("backbone.final_layer_norm.weight")
    t.result["backbone.final_bias"] = t.get("backbone.final_layer_norm.bias")
    t.linear("head.out", "head.out")


def translate_published(tensors: dict[str, np.ndarray], config: SpeechCodecConfig) -> dict[str, np.ndarray]:
    """Published state dict (weight norm as g, v) -> own flat names, weight norm folded."""
    translator = _Translator(tensors)
    _encoder(translator, config)
    _decoder(translator, config)
    return translator.result


def load_published(tensors: dict[str, np.ndarray], config: SpeechCodecConfig) -> SpeechCodec:
    """Codec from a WavTokenizer state dict. Keys the codec has no use for (`feature_extractor.encodec.
    decoder.*`, EMA statistics, the iSTFT window) are passed over; a missing key or wrong shape raises."""
    return assemble(config, translate_published(tensors, config))
