"""The speech codec's training task, driven by `python -m ar_omni_jax.tokenizers.train`.

    loss = mel + stft_weight * stft + commitment_weight * ||z - sg(e)||^2 + pitch_weight * pitch

The first `quantize_start` steps train a plain autoencoder; then k-means of its recent outputs places the codes,
and from there on they follow as moving averages of the vectors that choose them (VQ-VAE, van den Oord et al.
2017, appendix A.1), with codes that nothing chooses moved onto recent vectors.
"""

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import soundfile
from flax import nnx

from ar_omni_jax.tokenizers.speech import upkeep, weights
from ar_omni_jax.tokenizers.speech.audio import read_audio
from ar_omni_jax.tokenizers.speech.codec import SpeechCodec
from ar_omni_jax.tokenizers.speech.config import SpeechCodecConfig
from ar_omni_jax.tokenizers.speech.data import Crops, speech_paths
from ar_omni_jax.tokenizers.speech.losses import mel_distance, spectral_losses
from ar_omni_jax.tokenizers.speech.pitch import estimate_pitch
from ar_omni_jax.tokenizers.speech.tokenizer import SpeechTokenizer

EMBED = "codebook.embed"


def make_optimizer(config) -> optax.GradientTransformation:
    """Adam, clipping by global norm. The rate rises, stays, and falls linearly to 2 % over the last `decay`
    share of the steps: a run may be resumed with other `steps` before the fall begins."""
    falling = max(1, round(config.decay * config.steps))
    peak = config.learning_rate
    schedule = optax.join_schedules(
        [optax.linear_schedule(0.0, peak, config.warmup_steps), optax.linear_schedule(peak, 0.02 * peak, falling)],
        [max(config.warmup_steps, config.steps - falling)],
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adam(schedule, 0.9, 0.99))


class SpeechTask:
    """State: {"params": flat names -> arrays, "optimizer", "codebook": counts and sums, "recent": vectors}."""

    def __init__(self, config, codec_config: SpeechCodecConfig, crops: Crops, held_out: list, seen: list):
        self.config, self.codec_config, self.crops = config, codec_config, crops
        self.held_out, self.seen = held_out, seen
        self.optimizer = make_optimizer(config)
        self.frames = config.batch_size * (config.crop_samples // codec_config.hop_length)
        abstract = nnx.eval_shape(lambda: SpeechCodec(codec_config, rngs=nnx.Rngs(0)))
        self._graph, state = nnx.split(abstract)
        self._variables = list(nnx.to_flat_state(state))
        self.train_step = jax.jit(self._train_step, donate_argnums=0)

    def _codec(self, params: dict) -> SpeechCodec:
        filled = [(p, v.replace(params[".".join(map(str, p))])) for p, v in self._variables]
        return nnx.merge(self._graph, nnx.from_flat_state(filled))

    def init(self, seed: int) -> dict:
        codec = SpeechCodec(self.codec_config, rngs=nnx.Rngs(seed))
        params = {name: jnp.asarray(value) for name, value in weights.flatten(codec).items()}
        size, dimension = params[EMBED].shape
        return {
            "params": params,
            "optimizer": self.optimizer.init(params),
            "codebook": {"counts": jnp.ones((size,)), "sums": params[EMBED] + 0.0},
            "recent": jnp.zeros((self.config.recent_batches, self.frames, dimension)),
        }

    def batches(self, start_step: int, seed: int):
        return self.crops.batches(start_step, seed)

    def _losses(self, params: dict, wav: jax.Array, quantized: jax.Array):
        codec = self._codec(params)
        z = codec.embed(wav)
        codes = codec.codebook.nearest(jax.lax.stop_gradient(z))
        chosen = jax.lax.stop_gradient(codec.codebook.lookup(codes))
        straight_through = jnp.where(quantized, z + jax.lax.stop_gradient(chosen - z), z)
        out = codec.synthesize(straight_through)
        parts = spectral_losses(out, wav, self.codec_config.sample_rate)
        if codec.pitch is not None:
            parts["pitch"] = self._pitch_loss(codec.pitch(straight_through), wav)
        parts["commitment"] = jnp.where(quantized, jnp.mean(jnp.square(z - chosen)), 0.0)
        loss = parts["mel"] + self.config.stft_weight * parts["stft"]
        loss = loss + self.config.commitment_weight * parts["commitment"]
        loss = loss + self.config.pitch_weight * parts.get("pitch", 0.0)
        return loss, ({"loss": loss, **parts}, jax.lax.stop_gradient(z), codes)

    def _pitch_loss(self, log2_pitch: jax.Array, wav: jax.Array) -> jax.Array:
        """Mean absolute error in octaves where the voice has a pitch."""
        hop = self.codec_config.hop_length
        centres = np.arange(log2_pitch.shape[1]) * hop + hop + hop // 4
        target, confidence = estimate_pitch(wav, centres, self.codec_config.sample_rate)
        confidence = confidence * (centres < wav.shape[1])
        return jnp.sum(confidence * jnp.abs(log2_pitch - target)) / (jnp.sum(confidence) + 1.0)

    def _train_step(self, state: dict, wav: jax.Array, step: jax.Array) -> tuple[dict, dict]:
        quantized = step >= self.config.quantize_start
        gradient = jax.grad(self._losses, has_aux=True)
        grads, (metrics, z, codes) = gradient(state["params"], wav, quantized)
        updates, optimizer = self.optimizer.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        flat = z.reshape(self.frames, -1)
        codebook, embed = upkeep.moving_average(
            state["codebook"], params[EMBED], flat, codes.reshape(-1), self.config.codebook_decay, quantized
        )
        slot = step % self.config.recent_batches
        recent = jax.lax.dynamic_update_slice(state["recent"], flat[None], (slot, 0, 0))
        metrics |= {"used": upkeep.usage(codebook["counts"]), "z_std": jnp.std(z)}
        params = params | {EMBED: embed}
        return {"params": params, "optimizer": optimizer, "codebook": codebook, "recent": recent}, metrics

    def after_step(self, state: dict, step: int, seed: int) -> dict:
        c = self.config
        if step == c.quantize_start:
            filled = np.asarray(state["recent"])[: min(step, c.recent_batches)]
            return self._replace_codebook(state, *upkeep.kmeans(filled, self.codec_config.codebook_size, seed))
        due = step % c.revive_every == 0 and c.quantize_start < step <= c.revive_until * c.steps
        if not due:
            return state
        counts, embed = upkeep.revive(
            np.asarray(state["codebook"]["counts"]),
            np.asarray(state["params"][EMBED]),
            np.asarray(state["recent"]),
            c.dead_below,
            np.random.default_rng((seed, step)),
        )
        return self._replace_codebook(state, counts, embed)

    def _replace_codebook(self, state: dict, counts: np.ndarray, embed: np.ndarray) -> dict:
        counts, embed = jnp.asarray(counts, jnp.float32), jnp.asarray(embed, jnp.float32)
        codebook = {"counts": counts, "sums": counts[:, None] * embed}
        return state | {"params": state["params"] | {EMBED: embed}, "codebook": codebook}

    def tokenizer(self, state: dict) -> SpeechTokenizer:
        codec = self._codec(state["params"])
        return SpeechTokenizer(codec, weights.fingerprint(codec.config, weights.flatten(codec)))

    def evaluate(self, state: dict) -> tuple[dict, dict[str, bytes]]:
        """Held-out mel distance over the first seconds, share of the codes that training speech uses, sounds."""
        tokenizer, samples, seconds = self.tokenizer(state), {}, 2
        length = seconds * tokenizer.sample_rate
        pairs = [(wav, tokenizer.decode(tokenizer.encode(wav))) for wav in self.held_out]
        original, decoded = (
            np.stack([np.pad(x[:length], (0, max(0, length - len(x)))) for x in side])
            for side in zip(*pairs, strict=True)
        )
        codes = np.concatenate(tokenizer.encode_batch(self.seen))
        for i, pair in enumerate(pairs[:3]):
            for name, signal in zip(("original", "decoded"), pair, strict=True):
                file = io.BytesIO()
                soundfile.write(file, np.clip(signal, -1, 1), tokenizer.sample_rate, "PCM_16", format="WAV")
                samples[f"{i}_{name}.wav"] = file.getvalue()
        metrics = {
            "mel": float(mel_distance(decoded, original, tokenizer.sample_rate)),
            "codes_used": len(np.unique(codes)) / tokenizer.codebook_size,
        }
        return metrics, samples

    def export(self, state: dict, path_prefix: str, provenance: dict) -> None:
        hours = len(self.crops.samples) / self.codec_config.sample_rate / 3600
        data = {"training_utterances": len(self.crops.ends), "training_hours": round(hours, 2)}
        weights.save(path_prefix, self._codec(state["params"]), provenance | {"data": data})


def _first_utterances(paths: list, count: int, sample_rate: int) -> list[np.ndarray]:
    return [read_audio(path, sample_rate) for path in paths[:count]]


def create_task(config) -> SpeechTask:
    """The task of a config such as configs/tokenizer_speech.py; reads all training audio into memory."""
    codec_config = SpeechCodecConfig.from_dict(config.model.to_dict())
    if config.crop_samples % codec_config.hop_length:
        raise ValueError(
            f"config.crop_samples={config.crop_samples} must be a multiple of the codec's hop of "
            f"{codec_config.hop_length} samples"
        )
    rate = codec_config.sample_rate
    train, test = speech_paths(config.data_dir, "train"), speech_paths(config.data_dir, "test")
    crops = Crops(train, rate, config.crop_samples, config.batch_size)
    held_out = _first_utterances(test, config.eval_utterances, rate)
    seen = _first_utterances(train, 8 * config.eval_utterances, rate)
    return SpeechTask(config, codec_config, crops, held_out, seen)
