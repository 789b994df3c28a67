"""HF transformers' Chameleon with this project's weights: the yardstick of the latency measurement.

PyTorch and transformers are imported when a baseline is made, and only then.
"""

from __future__ import annotations

import importlib.util
import time

import numpy as np
from flax import nnx

from ar_omni_jax.model.transformer import Transformer
from ar_omni_jax.vocabulary import JointVocabulary, Modality


class BaselineError(ValueError):
    """There is no baseline for this model or on this machine; the message says why."""


def require_packages() -> None:
    """BaselineError unless PyTorch and transformers are installed."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise BaselineError(f"{' and '.join(missing)} not installed; pip install 'ar_omni_jax[torch]'")


def has_gpu() -> bool:
    """Whether PyTorch could run on a GPU. BaselineError where it is not installed."""
    require_packages()
    import torch

    return torch.cuda.is_available()


class Baseline:
    """`ChameleonForConditionalGeneration` with the weights of `model`, in float32 on CPU or bfloat16 on a GPU.

    Raises BaselineError for a model that it cannot express.
    """

    def __init__(self, model: Transformer, vocabulary: JointVocabulary):
        require_packages()
        import torch
        import transformers

        self._torch = torch
        transformers.logging.set_verbosity_error()
        config = hf_config(model.config, vocabulary, transformers)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        hf = transformers.ChameleonForConditionalGeneration(config).eval()
        weights = {name: torch.from_numpy(value) for name, value in hf_weights(model).items()}
        missing, surplus = hf.load_state_dict(weights, strict=False)
        missing = [name for name in missing if "vqmodel" not in name]
        if missing or surplus:
            raise BaselineError(f"weights do not fit: missing {missing[:3]}, not expected {list(surplus)[:3]}")
        hf.model.vocabulary_mapping.image_tokens = []  # it forbids these ids, and this is about speed with equal work
        self.model = hf.to(device, torch.bfloat16 if device == "cuda" else torch.float32)
        self.model.generation_config.eos_token_id = None  # every row makes all its tokens
        self.name = f"transformers {transformers.__version__}, torch {torch.__version__}, {device}"
        self.threads = torch.get_num_threads()

    def generate(self, prompts: np.ndarray, count: int) -> tuple[np.ndarray, float]:
        """Greedy: prompts int [B, P] -> (new ids int32 [B, count], seconds)."""
        torch = self._torch
        ids = torch.from_numpy(np.asarray(prompts, np.int64)).to(self.model.device)
        started = time.perf_counter()
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                do_sample=False,
                use_cache=True,
                pad_token_id=1,
            )
            new = out[:, ids.shape[1] :].cpu().numpy()
        return new.astype(np.int32), time.perf_counter() - started


def hf_config(c, vocabulary: JointVocabulary, transformers):
    """A ChameleonConfig of the same shape. Its image encoder is the smallest there can be; it is not run."""
    if not c.qk_norm:
        raise BaselineError("HF's Chameleon always has qk-norm; this model has none")
    # HF wants five names in its vocabulary; `Baseline` takes away what it does with them.
    ids = np.flatnonzero(vocabulary.modality_table == Modality.MARKER)
    spare = [int(i) for i in ids if i not in (vocabulary.marker("bos"), vocabulary.marker("eos"))]
    names = ("<image>", "IMGIMGAZ", "IMGIMGBZ", "IMGIMGCZ", "IMGIMGDZ")
    codec = dict(
        embed_dim=8, num_embeddings=4, latent_channels=8, resolution=16, base_channels=32, channel_multiplier=[1, 1]
    )
    return transformers.ChameleonConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=c.d_ff,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads,
        max_position_embeddings=c.max_length,
        rms_norm_eps=c.norm_eps,
        rope_theta=c.rope_theta,
        swin_norm=c.norm_placement == "swin",
        tie_word_embeddings=False,
        vq_config=codec,
        vocabulary_map=dict(zip(names, spare[-len(names) :], strict=True)),
    )


def hf_weights(model: Transformer) -> dict[str, np.ndarray]:
    """{HF name: float32 array}. HF turns channel pairs (i, i + K / 2), ours (2 i, 2 i + 1): q and k are reordered."""
    c = model.config
    if c.num_heads * c.head_dim != c.d_model:
        raise BaselineError(
            f"HF's Chameleon needs heads x width = {c.d_model}; this model has {c.num_heads} x {c.head_dim}"
        )
    flat = nnx.to_flat_state(nnx.state(model))
    state = {".".join(map(str, path)): np.asarray(variable[...], np.float32) for path, variable in flat}
    order = np.concatenate([np.arange(0, c.head_dim, 2), np.arange(1, c.head_dim, 2)])
    scale = c.d_model**0.5 if c.tie_embeddings else 1.0
    out = {
        "model.embed_tokens.weight": state["embedding"] * np.float32(scale),
        "model.norm.weight": state["final_norm"],
        "lm_head.weight": state["embedding"] if c.tie_embeddings else state["output"].T,
    }

    def rows(weight):  # [D, heads, K] -> [heads * K, D]
        return weight.transpose(1, 2, 0).reshape(-1, c.d_model)

    for n in range(c.num_layers):
        layer = {name.removeprefix("blocks."): value[n] for name, value in state.items() if name.startswith("blocks.")}
        ours = {
            "self_attn.q_proj": rows(layer["wq"][..., order]),
            "self_attn.k_proj": rows(layer["wk"][..., order]),
            "self_attn.v_proj": rows(layer["wv"]),
            "self_attn.o_proj": layer["wo"].reshape(-1, c.d_model).T,
            "mlp.gate_proj": layer["w_gate"].T,
            "mlp.up_proj": layer["w_up"].T,
            "mlp.down_proj": layer["w_down"].T,
            "input_layernorm": layer["attention_norm"],
            "post_attention_layernorm": layer["mlp_norm"],
        }
        out |= {f"model.layers.{n}.{name}.weight": value for name, value in ours.items()}
        for letter, heads in (("q", c.num_heads), ("k", c.num_kv_heads)):
            for kind in ("weight", "bias"):
                value = np.repeat(layer[f"{letter}_norm_{kind}"][:, order], heads // c.qk_norm_groups, axis=0)
                out[f"model.layers.{n}.self_attn.{letter}_norm.{kind}"] = value
    return {name: np.array(value, order="C") for name, value in out.items()}  # PyTorch wants them writable
