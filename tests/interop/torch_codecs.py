"""Both codec families in plain PyTorch, straight from a state dict under the published names. No code is shared."""

import math

import torch
import torch.nn.functional as F


# -- VQGAN -----------------------------------------------------------------------------------------------------
def _conv2d(sd, name, x, **options):
    return F.conv2d(x, sd[f"{name}.weight"], sd[f"{name}.bias"], **options)


def _norm2d(sd, name, x):
    return F.group_norm(x, 32, sd[f"{name}.weight"], sd[f"{name}.bias"], eps=1e-6)


def _block2d(sd, name, x):
    h = _conv2d(sd, f"{name}.conv1", F.silu(_norm2d(sd, f"{name}.norm1", x)), padding=1)
    h = _conv2d(sd, f"{name}.conv2", F.silu(_norm2d(sd, f"{name}.norm2", h)), padding=1)
    return h + (_conv2d(sd, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in sd else x)


def _attend2d(sd, name, x):
    b, c, height, width = x.shape
    h = _norm2d(sd, f"{name}.norm", x)
    q, k, v = (_conv2d(sd, f"{name}.{part}", h).flatten(2).transpose(1, 2)[:, None] for part in "qkv")
    mixed = F.scaled_dot_product_attention(q, k, v)[:, 0]  # one head, scale C^-0.5
    return x + _conv2d(sd, f"{name}.proj_out", mixed.transpose(1, 2).reshape(b, c, height, width))


def _middle2d(sd, name, x):
    return _block2d(sd, f"{name}.block_2", _attend2d(sd, f"{name}.attn_1", _block2d(sd, f"{name}.block_1", x)))


def _stage2d(sd, name, x):
    j = 0
    while f"{name}.block.{j}.conv1.weight" in sd:
        x = _block2d(sd, f"{name}.block.{j}", x)
        if f"{name}.attn.{j}.q.weight" in sd:
            x = _attend2d(sd, f"{name}.attn.{j}", x)
        j += 1
    return x


def vqgan_latents(sd, pixels, stages):
    """[B, 3, H, W] -> [B, embed_dim, h, w]."""
    x = _conv2d(sd, "encoder.conv_in", pixels, padding=1)
    for i in range(stages):
        x = _stage2d(sd, f"encoder.down.{i}", x)
        if i < stages - 1:
            x = _conv2d(sd, f"encoder.down.{i}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
    x = F.silu(_norm2d(sd, "encoder.norm_out", _middle2d(sd, "encoder.mid", x)))
    return _conv2d(sd, "quant_conv", _conv2d(sd, "encoder.conv_out", x, padding=1))


def vqgan_codes(sd, latents):
    """[B, D, h, w] -> int64 [B, h, w]."""
    vectors, book = latents.permute(0, 2, 3, 1).double(), sd["quantize.embedding.weight"].double()
    return (vectors[..., None, :] - book).square().sum(-1).argmin(-1)


def vqgan_pixels(sd, codes, stages):
    """int64 [B, h, w] -> [B, 3, H, W]."""
    z = sd["quantize.embedding.weight"][codes].permute(0, 3, 1, 2)
    x = _conv2d(sd, "decoder.conv_in", _conv2d(sd, "post_quant_conv", z), padding=1)
    x = _middle2d(sd, "decoder.mid", x)
    for i in reversed(range(stages)):
        x = _stage2d(sd, f"decoder.up.{i}", x)
        if i:
            x = _conv2d(sd, f"decoder.up.{i}.upsample.conv", F.interpolate(x, scale_factor=2.0), padding=1)
    return _conv2d(sd, "decoder.conv_out", F.silu(_norm2d(sd, "decoder.norm_out", x)), padding=1)


# -- WavTokenizer ----------------------------------------------------------------------------------------------
def _normed_conv(sd, name, x, stride=1):
    """Weight-normalized convolution with EnCodec's symmetric reflection, last frame filled up."""
    weight = torch._weight_norm(sd[f"{name}.conv.conv.weight_v"], sd[f"{name}.conv.conv.weight_g"], 0)
    total = weight.shape[2] - stride
    right = total // 2
    fill = math.ceil(x.shape[2] / stride) * stride - x.shape[2]
    return F.conv1d(F.pad(x, (total - right, right + fill), "reflect"), weight, sd[f"{name}.conv.conv.bias"], stride)


def speech_embeddings(sd, wav, strides, lstm_layers):
    """[B, T] -> [B, C, ceil(T / hop)]."""
    name = "feature_extractor.encodec.encoder.model."
    x, index = _normed_conv(sd, f"{name}0", wav[:, None]), 1
    for stride in strides:
        h = _normed_conv(sd, f"{name}{index}.block.1", F.elu(x))
        x = _normed_conv(sd, f"{name}{index}.shortcut", x) + _normed_conv(sd, f"{name}{index}.block.3", F.elu(h))
        x = _normed_conv(sd, f"{name}{index + 2}", F.elu(x), stride)
        index += 3
    lstm = torch.nn.LSTM(x.shape[1], x.shape[1], lstm_layers)
    prefix = f"{name}{index}.lstm."
    lstm.load_state_dict({k.removeprefix(prefix): v for k, v in sd.items() if k.startswith(prefix)})
    x = x + lstm(x.permute(2, 0, 1))[0].permute(1, 2, 0)
    return _normed_conv(sd, f"{name}{index + 2}", F.elu(x))


def speech_codes(sd, embeddings):
    """[B, C, n] -> int64 [B, n]."""
    book = sd["feature_extractor.encodec.quantizer.vq.layers.0._codebook.embed"].double()
    return (embeddings.transpose(1, 2).double()[:, :, None] - book).square().sum(-1).argmin(-1)


def _conv1d(sd, name, x, **options):
    return F.conv1d(x, sd[f"{name}.weight"], sd[f"{name}.bias"], **options)


def _norm1d(sd, name, x):
    return F.group_norm(x, 32, sd[f"{name}.weight"], sd[f"{name}.bias"], eps=1e-6)


def _ada(sd, name, x, row):
    return F.layer_norm(x, x.shape[-1:], sd[f"{name}.scale.weight"][row], sd[f"{name}.shift.weight"][row], eps=1e-6)


def speech_backbone(sd, codes, layers, row=0):
    """int64 [B, n] -> features [B, n, dim]."""
    book = sd["feature_extractor.encodec.quantizer.vq.layers.0._codebook.embed"]
    x = _conv1d(sd, "backbone.embed", book[codes].transpose(1, 2), padding=3)
    for i in range(5):
        name = f"backbone.pos_net.{i}"
        if i == 2:
            h = _norm1d(sd, f"{name}.norm", x)
            q, k, v = (_conv1d(sd, f"{name}.{part}", h) for part in "qkv")
            weights = torch.softmax(q.transpose(1, 2) @ k * x.shape[1] ** -0.5, dim=-1)
            x = x + _conv1d(sd, f"{name}.proj_out", v @ weights.transpose(1, 2))
        else:
            h = _conv1d(sd, f"{name}.conv1", F.silu(_norm1d(sd, f"{name}.norm1", x)), padding=1)
            x = x + _conv1d(sd, f"{name}.conv2", F.silu(_norm1d(sd, f"{name}.norm2", h)), padding=1)
    x = _ada(sd, "backbone.norm", _norm1d(sd, "backbone.pos_net.5", x).transpose(1, 2), row)
    for i in range(layers):
        name = f"backbone.convnext.{i}"
        h = _conv1d(sd, f"{name}.dwconv", x.transpose(1, 2), padding=3, groups=x.shape[2]).transpose(1, 2)
        h = F.linear(_ada(sd, f"{name}.norm", h, row), sd[f"{name}.pwconv1.weight"], sd[f"{name}.pwconv1.bias"])
        h = F.linear(F.gelu(h), sd[f"{name}.pwconv2.weight"], sd[f"{name}.pwconv2.bias"])
        x = x + sd[f"{name}.gamma"] * h
    final = "backbone.final_layer_norm"
    return F.layer_norm(x, x.shape[-1:], sd[f"{final}.weight"], sd[f"{final}.bias"], eps=1e-6)


def speech_audio(sd, features, n_fft, hop):
    """[B, n, dim] -> [B, n * hop]: "same" padding, so torch.istft does not fit; frames are folded by hand."""
    magnitude, phase = F.linear(features, sd["head.out.weight"], sd["head.out.bias"]).chunk(2, dim=-1)
    spectrum = torch.polar(magnitude.exp().clamp(max=100.0), phase)
    window = torch.hann_window(n_fft)
    frames = torch.fft.irfft(spectrum, n_fft) * window

    def fold(rows):  # [B, n, n_fft] -> [B, samples]
        length = (rows.shape[1] - 1) * hop + n_fft
        return F.fold(rows.transpose(1, 2), (1, length), (1, n_fft), stride=(1, hop))[:, 0, 0]

    trim = (n_fft - hop) // 2
    envelope = fold(window.square().expand(1, frames.shape[1], n_fft))
    return fold(frames)[:, trim:-trim] / envelope[:, trim:-trim]
