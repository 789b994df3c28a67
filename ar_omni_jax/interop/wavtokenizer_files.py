"""WavTokenizer's Lightning `.ckpt` with its yaml: the speech codec's published layout, in and out.

Weight norm is folded on the way in (both of PyTorch's ways to store it) and split again on the way out; what belongs
to the training, or to EnCodec alone, is left out and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ar_omni_jax.interop import codec_files as files
from ar_omni_jax.interop.errors import InteropError, differences, refuse
from ar_omni_jax.interop.registry import Layout
from ar_omni_jax.tokenizers.speech.config import BackboneConfig, EncoderConfig, HeadConfig, SpeechCodecConfig
from ar_omni_jax.tokenizers.speech.head import periodic_hann
from ar_omni_jax.tokenizers.speech.published import (
    CODEBOOK,
    ENCODER,
    QUANTIZER,
    published_shapes,
    to_published,
    translate_published,
)

WINDOW = "head.istft.window"  # derived from n_fft: checked, not read
UNUSED_DECODER = "feature_extractor.encodec.decoder."
_STATISTICS = "the codebook's running statistics, of use to its training alone"
_JUDGES = "discriminators and losses of the codec's training"
GROUPS = {
    UNUSED_DECODER: "EnCodec's decoder, which WavTokenizer never runs",
    f"{QUANTIZER}inited": _STATISTICS,
    f"{QUANTIZER}cluster_size": _STATISTICS,
    f"{QUANTIZER}embed_avg": _STATISTICS,
    **dict.fromkeys(
        ("multiperioddisc.", "multiresddisc.", "dac.", "dacdiscriminator.", "disc_loss.", "gen_loss.",
         "feat_matching_loss.", "melspec_loss.", "utmos_model."), _JUDGES,
    ),
}  # fmt: skip
# PyTorch's newer parametrization stores the same g and v under other names.
_RENAMED = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}
_SAMPLE_RATE = 24000  # of all published WavTokenizers
# What the published code fixes for every codec: its settings have no key for these.
_FIXED = dict(
    n_filters=32, dimension=512, kernel_size=7, last_kernel_size=7, residual_kernel_size=3, compress=2, lstm_layers=2
)
_EXTRACTOR = ("encodec_model", "bandwidths", "train_codebooks", "num_quantizers", "dowmsamples", "vq_bins", "vq_kmeans")
_BACKBONE = ("input_channels", "dim", "intermediate_dim", "num_layers", "adanorm_num_embeddings",
             "layer_scale_init_value")  # fmt: skip


# -- configuration ---------------------------------------------------------------------------------------------
def config_from_shapes(
    shapes: Mapping[str, tuple[int, ...]], source: str, sample_rate: int = _SAMPLE_RATE
) -> SpeechCodecConfig:
    """The codec that tensors tell by their shapes. All but the sample rate shows in them."""

    def size(key: str, axis: int) -> int:
        if key not in shapes or len(shapes[key]) <= axis:
            raise InteropError(
                f"{source} is no WavTokenizer checkpoint: {key} is missing or has a foreign shape; expected keys under "
                "feature_extractor.encodec.encoder., backbone. and head."
            )
        return shapes[key][axis]

    def count(prefix: str, at: int) -> int:
        return 1 + max((int(k.split(".")[at]) for k in shapes if k.startswith(prefix)), default=-1)

    stages = sum(k.startswith(ENCODER) and k.endswith(".shortcut.conv.conv.weight_v") for k in shapes)
    kernels = [size(f"{ENCODER}{3 * i + 3}.conv.conv.weight_v", 2) for i in range(stages)]
    lstm = f"{ENCODER}{3 * stages + 1}.lstm."
    layers = sum(k.startswith(f"{lstm}weight_ih_l") for k in shapes)
    last = f"{ENCODER}{3 * stages + (3 if layers else 2)}.conv.conv.weight_v"
    width = size(f"{ENCODER}0.conv.conv.weight_v", 0)
    ratios = tuple(kernel // 2 for kernel in reversed(kernels))
    encoder = EncoderConfig(
        n_filters=width,
        dimension=size(last, 0),
        ratios=ratios,
        kernel_size=size(f"{ENCODER}0.conv.conv.weight_v", 2),
        last_kernel_size=size(last, 2),
        residual_kernel_size=size(f"{ENCODER}1.block.1.conv.conv.weight_v", 2),
        compress=max(1, width // max(1, size(f"{ENCODER}1.block.1.conv.conv.weight_v", 0))),
        lstm_layers=layers,
    )
    backbone = BackboneConfig(
        dim=size("backbone.embed.weight", 0),
        intermediate_dim=size("backbone.convnext.0.pwconv1.weight", 0),
        num_layers=count("backbone.convnext.", 2),
        adanorm_num_embeddings=size("backbone.norm.scale.weight", 0),
    )
    head = HeadConfig(n_fft=size("head.out.weight", 0) - 2, hop_length=encoder.hop_length)
    try:
        return SpeechCodecConfig(encoder, backbone, head, size(CODEBOOK, 0), sample_rate)
    except ValueError as error:
        raise InteropError(f"{source}: {error}") from error


def apply_yaml(config: SpeechCodecConfig, path: Path) -> SpeechCodecConfig:
    """`config`, whose every value that the yaml states is the yaml's; InteropError for settings that are not ours."""
    values = files.read_yaml(path)
    init = files.section(values, path, "model", "init_args") if "model" in values else values
    extractor = files.section(init, path, "feature_extractor", "init_args")
    backbone = files.section(init, path, "backbone", "init_args")
    head = files.section(init, path, "head", "init_args")
    files.require_known(extractor, _EXTRACTOR, f"{path}: feature_extractor.init_args")
    files.require_known(backbone, _BACKBONE, f"{path}: backbone.init_args")
    files.require_known(head, ("dim", "n_fft", "hop_length", "padding"), f"{path}: head.init_args")
    needed = [(f"feature_extractor.{k}", extractor, k) for k in ("dowmsamples", "vq_bins")]
    needed += [(f"backbone.{k}", backbone, k) for k in _BACKBONE[:5]]
    needed += [(f"head.{k}", head, k) for k in ("dim", "n_fft", "hop_length")]
    lines = [f"missing setting: {name}" for name, where, key in needed if where.get(key) is None]
    for name, found, only in (
        ("feature_extractor.num_quantizers", extractor.get("num_quantizers", 1), 1),
        ("feature_extractor.encodec_model", extractor.get("encodec_model", "encodec_24khz"), "encodec_24khz"),
        ("head.padding", head.get("padding", "same"), "same"),
        ("head.dim", head.get("dim"), backbone.get("dim")),
    ):
        lines += [] if found == only else [f"not supported: {name} is {found!r}, must be {only!r}"]
    refuse(str(path), lines, "Give the yaml that the codec was trained with.")
    try:
        ratios = tuple(int(r) for r in extractor["dowmsamples"])
        return SpeechCodecConfig(
            EncoderConfig(**{**vars(config.encoder), "ratios": ratios, "dimension": backbone["input_channels"]}),
            BackboneConfig(**{k: backbone[k] for k in _BACKBONE[1:5]}),
            HeadConfig(n_fft=head["n_fft"], hop_length=head["hop_length"]),
            extractor["vq_bins"],
            int(init.get("sample_rate", config.sample_rate)),
        )
    except (TypeError, ValueError) as error:
        raise InteropError(f"{path}: {error}") from error


def yaml_settings(config: SpeechCodecConfig) -> dict[str, Any]:
    """The part of WavTokenizer's yaml that says what the codec is."""
    backbone, rows = config.backbone, config.backbone.adanorm_num_embeddings
    extractor = {
        "encodec_model": "encodec_24khz",
        "bandwidths": [6.6] * rows,
        "train_codebooks": True,
        "num_quantizers": 1,
        "dowmsamples": list(config.encoder.ratios),  # spelled so in the published code
        "vq_bins": config.codebook_size,
        "vq_kmeans": 200,
    }
    spine = {"input_channels": config.encoder.dimension, **{key: getattr(backbone, key) for key in _BACKBONE[1:5]}}
    head = {"dim": backbone.dim, "n_fft": config.head.n_fft, "hop_length": config.head.hop_length, "padding": "same"}
    parts = {
        "feature_extractor": {"class_path": "decoder.feature_extractors.EncodecFeatures", "init_args": extractor},
        "backbone": {"class_path": "decoder.models.VocosBackbone", "init_args": spine},
        "head": {"class_path": "decoder.heads.ISTFTHead", "init_args": head},
    }
    init = {"sample_rate": config.sample_rate, **parts}
    return {"model": {"class_path": "decoder.experiment.WavTokenizer", "init_args": init}}


# -- reading ---------------------------------------------------------------------------------------------------
def _canonical(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Names of the newer weight norm brought to weight_g and weight_v."""
    renamed = {}
    for name, tensor in tensors.items():
        for new, old in _RENAMED.items():
            name = name.removesuffix(new) + old if name.endswith(new) else name
        if name in renamed:
            raise InteropError(f"{name} is there in both of PyTorch's ways to store weight norm; keep one of them")
        renamed[name] = tensor
    return renamed


def detect(path: Path) -> str | None:
    """Evidence that a file is a WavTokenizer checkpoint."""
    if not path.is_file() or path.suffix not in (*files.TORCH_SUFFIXES, ".safetensors"):
        return None
    try:
        names = files.read_tensors(path)
    except InteropError:
        return None
    fits = CODEBOOK in names and "backbone.embed.weight" in names
    return f"{CODEBOOK} and backbone.embed.weight" if fits else None


def read(path: Path, options: Any = None) -> files.SpeechWeights:
    """The speech codec of a .ckpt and its yaml. InteropError names everything that does not fit."""
    notes: list[str] = []
    tensors, left_out = files.without_groups(_canonical(files.read_tensors(path)), GROUPS, path.name)
    notes += left_out
    window = tensors.pop(WINDOW, None)
    found, yaml = files.shapes_of(tensors), files.config_file(path, options)
    config = config_from_shapes(found, str(path))
    if yaml:
        config = apply_yaml(config, yaml)
        notes.append(f"{path.name}: settings of {yaml}")
    elif config == SpeechCodecConfig():
        notes.append(f"{path.name}: no yaml; the shapes are the published codec's, so {_SAMPLE_RATE} Hz is taken")
    else:
        raise InteropError(
            f"{path}: the sample rate does not show in the tensors, and these are not the shapes of the published "
            f"codec ({_SAMPLE_RATE} Hz); give the codec's settings with --config=FILE.yaml"
        )
    refuse(str(path), differences(published_shapes(config), found),
           "Do file and settings belong together? Another codec needs its own yaml.")  # fmt: skip
    weights = files.to_float32(tensors, str(path), notes)
    if window is not None:
        _check_window(window.read(), config.head.n_fft, path)
        notes.append(f"{path.name}: {WINDOW} is the Hann window of {config.head.n_fft} samples, as it must be")
    notes.append(f"{path.name}: {len(weights)} tensors of a WavTokenizer, each used once; weight norm folded")
    return files.SpeechWeights(config, translate_published(weights, config), path.name, notes)


def _check_window(window: np.ndarray, n_fft: int, path: Path) -> None:
    if window.shape != (n_fft,) or not np.allclose(window, periodic_hann(n_fft), atol=1e-5):
        raise InteropError(
            f"{path}: {WINDOW} {list(window.shape)} is not the periodic Hann window of head.n_fft = {n_fft} samples "
            "that this codec decodes with"
        )


def load(path: Path, options: Any) -> files.Codecs:
    """See `registry.Layout`."""
    weights = read(path, options)
    return files.Codecs(str(path), speech=lambda: weights)


# -- writing ---------------------------------------------------------------------------------------------------
def unused_decoder() -> dict[str, np.ndarray]:
    """EnCodec's decoder as zeros (g = 0 on v = 1), for the strict loading of the published code, which never runs it.

    512 channels, ratios 8, 5, 4, 2 and a two-layer LSTM, whatever the codec: the published code fixes them.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, weight: tuple[int, ...], outputs: int) -> None:
        shapes[f"{name}.bias"] = (outputs,)
        shapes[f"{name}.weight_g"] = (weight[0], 1, 1)
        shapes[f"{name}.weight_v"] = weight

    convolution("0.conv.conv", (512, 512, 7), 512)
    for layer in (0, 1):
        for gate in ("ih", "hh"):
            shapes[f"1.lstm.weight_{gate}_l{layer}"] = (2048, 512)
            shapes[f"1.lstm.bias_{gate}_l{layer}"] = (2048,)
    width = 512
    for i, ratio in enumerate((8, 5, 4, 2)):
        half = width // 2
        convolution(f"{3 * i + 3}.convtr.convtr", (width, half, 2 * ratio), half)
        convolution(f"{3 * i + 4}.block.1.conv.conv", (half // 2, half, 3), half // 2)
        convolution(f"{3 * i + 4}.block.3.conv.conv", (half, half // 2, 1), half)
        convolution(f"{3 * i + 4}.shortcut.conv.conv", (half, half, 1), half)
        width = half
    convolution("15.conv.conv", (1, width, 7), 1)
    prefix = f"{UNUSED_DECODER}model."
    return {f"{prefix}{n}": np.full(s, n.endswith("weight_v"), np.float32) for n, s in shapes.items()}


def published_state(codec: files.SpeechWeights) -> dict[str, np.ndarray]:
    """Every tensor that the published code loads strictly: the codec, its window, and stand-ins for what it ignores.

    InteropError naming all that the layout has no place for.
    """
    config = codec.config
    lines = [
        f"{name}: {why}"
        for name, bad, why in (
            ("causal", config.causal, "the published codec pads both sides"),
            ("encoder.lookahead", config.encoder.lookahead, "it has no such setting"),
            ("encoder.normalize", config.encoder.normalize, "it does not normalize codes"),
            ("backbone.position_net", not config.backbone.position_net, "it always has one"),
            ("backbone.upsample", config.backbone.upsample > 1, "it makes one frame a code"),
            ("head.source_filter", config.head.source_filter, "it predicts phases"),
        )
        if bad
    ]
    refuse(codec.source, lines, "This codec is of another make than WavTokenizer and stays in this project.")
    state = to_published(codec.tensors, config)
    state |= {
        f"{QUANTIZER}inited": np.ones(1, np.float32),
        f"{QUANTIZER}cluster_size": np.ones(config.codebook_size, np.float32),
        f"{QUANTIZER}embed_avg": state[CODEBOOK],
        WINDOW: periodic_hann(config.head.n_fft),
    }
    return state | (unused_decoder() if _is_published_encoder(config) else {})


def _is_published_encoder(config: SpeechCodecConfig) -> bool:
    return all(getattr(config.encoder, key) == value for key, value in _FIXED.items())


def save(loaded: files.Codecs, path: Path, options: Any) -> list[str]:
    """Writes PATH/wavtokenizer.ckpt and PATH/wavtokenizer.yaml."""
    codec = loaded.one("speech")
    target = path / "wavtokenizer.ckpt"
    state = published_state(codec)
    files.write_torch_and_yaml(target, state, yaml_settings(codec.config))
    lines = [*codec.notes, f"{target} and wavtokenizer.yaml: {len(state)} tensors; weight norm split as v = w, g = |w|"]
    if _is_published_encoder(codec.config):
        return [*lines, f"{UNUSED_DECODER}* and the codebook's statistics are stand-ins: nothing runs them"]
    fixed = ", ".join(f"{k} {v}" for k, v in _FIXED.items() if getattr(codec.config.encoder, k) != v)
    return [*lines, f"WARNING the published code fixes {fixed}: change it there before it can load this file"]


LAYOUT = Layout(files.FAMILY, "speech codec: WavTokenizer's Lightning .ckpt with its yaml", detect, load, save)
