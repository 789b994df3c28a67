"""This project's side: the training step that `main` runs, on packed rows."""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx

from ar_omni_jax.benchmarks import training_work as work
from ar_omni_jax.model.transformer import abstract_transformer
from ar_omni_jax.parallel.mesh import make_mesh
from ar_omni_jax.training.perceptual import FrozenImageDecoder
from ar_omni_jax.training.state import model_from_params
from ar_omni_jax.training.step import Trainer


class OurStep:
    """One optimizer step over packed rows, in `accumulate` micro-batches. `options`: of the model's configuration."""

    def __init__(self, size: work.Size, steps: int, accumulate: int = 1, **options):
        optimizer = work.ADAM | {"peak_lr": work.LEARNING_RATE, "schedule": "constant", "warmup_fraction": 0.0}
        optimizer |= {"weight_decay": work.WEIGHT_DECAY, "clip_norm": work.CLIP_NORM, "accumulate": accumulate}
        self._trainer = Trainer(
            work.model_of(size, **options),
            {"perceptual_weight": work.PERCEPTUAL_WEIGHT, "z_loss": work.Z_LOSS},
            optimizer,
            work.vocabulary_of(size),
            make_mesh({"data": 1}, jax.devices()[:1]),
            FrozenImageDecoder(work.codebook()),
            total_steps=steps,
        )
        self._state = self._trainer.init(0)
        self.name = f"jax {jax.__version__}, {jax.default_backend()}"

    def weights(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """({HF name: array}, W_h): the weights as PyTorch takes them."""
        from ar_omni_jax.evaluation.hf_baseline import hf_weights

        model = model_from_params(self._trainer.model_config, self._state.params["model"])
        plain = abstract_transformer(self._trainer.model_config)
        nnx.update(plain, nnx.state(model))
        return hf_weights(plain), {k: np.asarray(v) for k, v in self._state.params["projection"].items()}

    def __call__(self, batch: dict[str, np.ndarray]) -> float:
        """Updates the weights; returns the step's loss before it."""
        self._state, metrics = self._trainer.train_step(self._state, self._trainer.put(batch))
        return float(metrics["loss"])
