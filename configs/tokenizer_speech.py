"""The small default speech tokenizer: causal WavTokenizer family, 16 kHz, 40 tokens/s, 2048 codes.

    python -m ar_omni_jax.tokenizers.train --config=configs/tokenizer_speech.py --workdir=DIR --config.data_dir=TOY

Expected (toy world of 3000 scenes, about 30 minutes on one CPU core): held-out log-mel distance 0.21, 99 % of the
codes in use; the toy recognizer's word error on a test voice not trained on goes from 0.6 % to 2.1 %.
"""

import json

from ml_collections import ConfigDict

from ar_omni_jax.tokenizers.speech.config import default_config


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.kind = "speech"
    config.data_dir = ""  # holds train.jsonl, test.jsonl and the sounds they name
    config.seed = 0
    config.steps = 5000
    config.batch_size = 8
    config.crop_samples = 16000
    config.learning_rate = 1.5e-3
    config.warmup_steps = 100
    config.decay = 0.3  # share of the steps, at the end, in which the learning rate falls
    config.clip_norm = 1.0
    config.log_every = 50
    config.eval_every = 500
    config.eval_utterances = 32
    config.checkpoint_every = 500

    config.model = ConfigDict(json.loads(default_config().to_json()))

    config.stft_weight = 0.5
    config.pitch_weight = 1.0
    config.commitment_weight = 0.25
    config.codebook_decay = 0.99
    config.quantize_start = 300  # steps as a plain autoencoder before k-means places the codes
    config.recent_batches = 64  # batches of encoder outputs kept for k-means and for moving dead codes
    config.revive_every = 50
    config.revive_until = 0.8  # share of the steps after which no code is moved any more
    config.dead_below = 0.05  # a code with a smaller share of the mean count (moving average) is dead
    return config
