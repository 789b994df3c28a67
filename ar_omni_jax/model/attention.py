"""Attention backends behind one function signature, and the registry that names them.

    attention(q_BLHK, k_BLGK, v_BLGK, segment_ids_BL) -> out_BLHK

Queries have H heads, keys and values G heads (G divides H; query head h reads key head h // (H / G)). Row
position i attends to j when j <= i and segment_ids[i] == segment_ids[j]; segment 0 is padding, whose output
nobody reads. Scores are scaled by head_dim^-0.5 and the softmax is float32. The output has the dtype of q.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ar_omni_jax.model import remat
from ar_omni_jax.model.config import ConfigError, TransformerConfig

# Finite, so that a fully masked row gives a mean and no NaN; far below any score, so that exp() is exactly 0.
MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class AttentionBackend:
    """One way to compute attention.

    Attributes:
      function: as in the module's docstring.
      segments: it honours segment ids.
      platforms: "cpu", "gpu", "tpu"; empty: any. dtypes: of q, k and v; empty: any.
      kernel: a kernel that XLA cannot split over devices, so that a mesh calls it on each device's own part.
      pieces: (q_BMHK, k_BLGK, v_BLGK, q_segments_BM, segment_ids_BL, first_query) -> out_BMHK, queries
        first_query ... first_query + M - 1 (a traced integer) of rows of L; None if it needs whole rows of queries.
    """

    function: Callable
    segments: bool = True
    platforms: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    kernel: bool = False
    pieces: Callable | None = None

    def runs_on(self, platform: str) -> bool:
        return not self.platforms or platform in self.platforms


_BACKENDS: dict[str, AttentionBackend] = {}
AUTO = "auto"


def register_attention(name: str, **properties):
    """Decorator that makes an attention function available as `TransformerConfig.attention = name`.

    `properties`: of AttentionBackend, without the function.
    """

    def add(function):
        _BACKENDS[name] = AttentionBackend(function, **properties)
        return function

    return add


def attention_name(config: TransformerConfig, platform: str | None = None, pieces: int = 1) -> str:
    """The backend to use: the one that `config` names, or for "auto" the one for the platform.

    "auto" is splash on TPU; on GPU cuDNN where it can (16-bit products, one document a row), elsewhere rowwise;
    blocked where these cannot, as on pieces of rows.

    Args:
      platform: "cpu", "gpu" or "tpu" (default: JAX's). pieces: devices that share a row.
    Raises ConfigError, which names what would do instead, for a backend that is unknown, that the platform lacks,
    that cannot keep packed documents apart, or that takes neither these dtypes nor pieces of rows.
    """
    platform = jax.default_backend() if platform is None else platform
    platform = "gpu" if platform in ("cuda", "rocm") else platform
    if config.attention == AUTO:
        first = {"tpu": "splash", "gpu": "cudnn"}.get(platform, "rowwise")
        return "blocked" if _objection(config, first, platform, pieces) else first
    check_attention(config)
    objection = _objection(config, config.attention, platform, pieces)
    if objection:
        able = [name for name in sorted(_BACKENDS) if not _objection(config, name, platform, pieces)]
        raise ConfigError(
            f"TransformerConfig.attention = {config.attention!r}: {objection}; use one of {', '.join(able)}, or "
            f"{AUTO!r}, which chooses by platform"
        )
    return config.attention


def check_attention(config: TransformerConfig) -> None:
    """ConfigError for a backend that is unknown or unfit for the configuration on every platform."""
    if config.attention == AUTO:
        return
    if config.attention not in _BACKENDS:
        known = ", ".join((AUTO, *sorted(_BACKENDS)))
        raise ConfigError(f"TransformerConfig.attention = {config.attention!r}: must be one of {known}")
    if config.packed_rows and not _BACKENDS[config.attention].segments:
        able = ", ".join(sorted(n for n, b in _BACKENDS.items() if b.segments))
        raise ConfigError(
            f"TransformerConfig.attention = {config.attention!r}: honours no segment ids, so packed "
            f"documents would attend to each other; use one of {able}, or pack one document a row and set "
            "packed_rows=False"
        )


def _objection(config: TransformerConfig, name: str, platform: str, pieces: int) -> str:
    """Why a backend cannot be used here; empty if it can."""
    backend = _BACKENDS[name]
    if not backend.runs_on(platform):
        return f"runs on {', '.join(backend.platforms)} only, and these devices are {platform}"
    if config.packed_rows and not backend.segments:
        return "honours no segment ids, and packed_rows is True"
    if backend.dtypes and config.dtype not in backend.dtypes:
        return f"takes products of {' or '.join(backend.dtypes)}, and model.dtype is {config.dtype}"
    if pieces > 1 and backend.pieces is None:
        return f"needs whole rows of queries, and mesh.sequence = {pieces} splits them"
    return ""


def attention_backend(name: str) -> AttentionBackend:
    """The backend of that name (KeyError when unknown; see `attention_name`)."""
    return _BACKENDS[name]


def attention_function(config: TransformerConfig, platform: str | None = None) -> Callable:
    """The function of `attention_name` for one device; ConfigError likewise."""
    return _BACKENDS[attention_name(config, platform)].function


def prompt_attention(config: TransformerConfig) -> Callable:
    """Attention for reading prompts, one document a row, on any number of devices.

    How a model was trained says little about where it is used: a backend that this platform lacks, or whose kernel
    XLA cannot split over devices, makes way for "blocked".
    """
    check_attention(config)
    name = attention_name(config) if config.attention == AUTO else config.attention
    usable = not _BACKENDS[name].kernel and not _objection(config, name, jax.default_backend(), 1)
    return _BACKENDS[name if usable else "blocked"].function


def product(subscripts: str, a, b):
    """einsum with float32 sums and result. 16-bit operands stay 16-bit except on CPU, whose XLA lacks the
    product."""
    if a.dtype == jnp.float32 and b.dtype == jnp.float32:
        return jnp.einsum(subscripts, a, b)

    def widened(a, b):
        return jnp.einsum(subscripts, a.astype(jnp.float32), b.astype(jnp.float32))

    def mixed(a, b):
        return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)

    return jax.lax.platform_dependent(a, b, cpu=widened, default=mixed)


def grouped_attention(q_BGRLK, k_BGSK, v_BGSK, mask_BLS):
    """softmax(q k^T / sqrt(K)) v over the keys where the mask is True; R query heads share a key head.

    The mask is added and the division by the softmax's sum comes after the product with v: a third of the
    time of the textbook order on CPU. A masked score is exactly MASKED in float32 and its weight exactly 0.
    """
    dtype, K = q_BGRLK.dtype, q_BGRLK.shape[-1]
    q = (q_BGRLK.astype(jnp.float32) * K**-0.5).astype(dtype)
    bias = jnp.where(mask_BLS, 0.0, MASKED)[:, None, None]
    scores = checkpoint_name(product("bgrlk,bgsk->bgrls", q, k_BGSK), remat.ATTENTION_RESIDUALS) + bias
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    out = checkpoint_name(product("bgrls,bgsk->bgrlk", weights.astype(dtype), v_BGSK), remat.ATTENTION_RESIDUALS)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(dtype)


def _heads_first(q_BLHK, k_BLGK, v_BLGK):
    """To [B, G, R, L, K] and [B, G, L, K]: batched products on CPU want the batch axes in front."""
    B, L, H, K = q_BLHK.shape
    G = k_BLGK.shape[2]
    q = q_BLHK.reshape(B, L, G, H // G, K).transpose(0, 2, 3, 1, 4)
    return q, k_BLGK.transpose(0, 2, 1, 3), v_BLGK.transpose(0, 2, 1, 3)


def _heads_last(out_BGRLK):
    B, G, R, L, K = out_BGRLK.shape
    return out_BGRLK.transpose(0, 3, 1, 2, 4).reshape(B, L, G * R, K)


def segment_mask(query_segments_BL, key_segments_BS, first_query: int = 0):
    """bool [B, L, S]: same segment, and key index <= query index + `first_query`."""
    queries = jnp.arange(query_segments_BL.shape[1])[:, None] + first_query
    causal = jnp.arange(key_segments_BS.shape[1])[None, :] <= queries
    return causal & (query_segments_BL[:, :, None] == key_segments_BS[:, None, :])


def _reference_pieces(q, k, v, q_segments, segment_ids, first_query):
    mask = segment_mask(q_segments, segment_ids, first_query)
    return _heads_last(grouped_attention(*_heads_first(q, k, v), mask))


@register_attention("reference", pieces=_reference_pieces)
def reference_attention(q, k, v, segment_ids):
    """The definition, all L x L scores at once."""
    return _reference_pieces(q, k, v, segment_ids, segment_ids, 0)


def _blocks_of_queries(q_BGRLK, k_BGLK, v_BGLK, segment_ids_BL, block: int):
    out = []
    for start in range(0, q_BGRLK.shape[3], block):
        stop = min(start + block, q_BGRLK.shape[3])
        mask = segment_mask(segment_ids_BL[:, start:stop], segment_ids_BL[:, :stop], start)
        out.append(grouped_attention(q_BGRLK[:, :, :, start:stop], k_BGLK[:, :, :stop], v_BGLK[:, :, :stop], mask))
    return jnp.concatenate(out, axis=3)


def _blocked_pieces(q, k, v, q_segments, segment_ids, first_query, *, block: int = 128):
    """Queries in blocks, scores recomputed in the backward pass. Every block meets all keys of the row: where the
    piece begins is known on the device only, and its last piece, which the others wait for, meets them anyway."""
    q, k, v = _heads_first(q, k, v)
    count = -(-q.shape[3] // block)
    while q.shape[3] % count:
        count += 1
    size = q.shape[3] // count

    @jax.checkpoint
    def one(index):
        part = jax.lax.dynamic_slice_in_dim(q, index * size, size, axis=3)
        ids = jax.lax.dynamic_slice_in_dim(q_segments, index * size, size, axis=1)
        return grouped_attention(part, k, v, segment_mask(ids, segment_ids, first_query + index * size))

    out = jnp.moveaxis(jax.lax.map(one, jnp.arange(count)), 0, 3)
    return _heads_last(out.reshape(q.shape))


@register_attention("blocked", pieces=_blocked_pieces)
def blocked_attention(q, k, v, segment_ids, *, block: int = 128):
    """Queries in blocks, each against the keys up to its own end: the causal half is never computed."""
    return _heads_last(_blocks_of_queries(*_heads_first(q, k, v), segment_ids, block))


@register_attention("rowwise")
def rowwise_attention(q, k, v, segment_ids, *, block: int = 128):
    """`blocked`, one row of the batch after the other, scores recomputed in the backward pass: the CPU's
    choice.

    One row's scores fit in the cache of a core, and none are kept.
    """

    @jax.checkpoint
    def row(arrays):
        return _blocks_of_queries(*(a[None] for a in arrays), block)[0]

    return _heads_last(jax.lax.map(row, (*_heads_first(q, k, v), segment_ids)))


@register_attention("cudnn", segments=False, platforms=("gpu",), dtypes=("bfloat16", "float16"))
def cudnn_attention(q, k, v, segment_ids):
    """NVIDIA's fused kernel through JAX's public function: causal only, 16-bit only, one document a row."""
    del segment_ids  # padding stands at the row's end, where causality alone keeps it from the document
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def _splash_pieces(*arguments):
    from ar_omni_jax.model import splash

    return splash.splash_pieces(*arguments)


@register_attention("splash", platforms=("tpu",), kernel=True, pieces=_splash_pieces)
def splash_attention(q, k, v, segment_ids):
    """The TPU's kernel (`model/splash.py`): no scores in memory, documents of a row kept apart."""
    from ar_omni_jax.model import splash

    return splash.splash_attention(q, k, v, segment_ids)
