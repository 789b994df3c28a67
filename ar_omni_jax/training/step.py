"""One training step as one jitted function on a mesh.

The loss of a step is L = sum(w nll) / W + lambda * sum(d) / |T| + z_loss * sum(w log^2 Z) / W, where W, |T| and the
sums run over the *global* batch, all hosts and all micro-batches. The denominators are read from the batch
before any model is run, so a micro-batch's share of the loss is exact and the gradients simply add up.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.model.transformer import Transformer
from ar_omni_jax.parallel import sharding
from ar_omni_jax.parallel.layout import mesh_layout
from ar_omni_jax.parallel.rows import global_array, rows_here
from ar_omni_jax.training import losses, perceptual, spikes
from ar_omni_jax.training.losses import LossConfig
from ar_omni_jax.training.mesh_losses import mesh_token_losses
from ar_omni_jax.training.optimizer import OptimizerConfig, make_optimizer
from ar_omni_jax.training.perceptual import FrozenImageDecoder
from ar_omni_jax.training.spikes import SpikeConfig
from ar_omni_jax.training.state import TrainState, model_from_params, model_logical_axes, model_params
from ar_omni_jax.vocabulary import JointVocabulary

BATCH_DTYPES = {
    "tokens": np.int32,
    "targets": np.int32,
    "loss_weights": np.float32,
    "target_class": np.uint8,
    "segment_ids": np.int32,
    "positions": np.int32,
}


class BatchError(ValueError):
    """A batch that the step cannot take; the message says what is wrong with which array."""


class Trainer:
    """The model's training step, compiled once for a mesh.

    Args:
      model_config: of the Transformer; its `vocab_size` must be the vocabulary's.
      loss, optimizer: the config's sections (mappings, or LossConfig and OptimizerConfig).
      vocabulary: joint vocabulary of the data.
      mesh: of `parallel.mesh.make_mesh`.
      image_decoder: an image tokenizer's frozen part; with it the state has a projection W_h, and it must be given
        when loss.perceptual_weight > 0.
      total_steps: length of the schedule.
      rules: logical axes to mesh axes.
      spike: which steps are skipped as spikes; default none.
    Raises LossError, OptimizerError, ShardingError, BatchError or ValueError for settings that do not fit.
    """

    def __init__(
        self,
        model_config: TransformerConfig,
        loss: Mapping | LossConfig,
        optimizer: Mapping | OptimizerConfig,
        vocabulary: JointVocabulary,
        mesh: Mesh,
        image_decoder: FrozenImageDecoder | None = None,
        *,
        total_steps: int,
        rules: sharding.LogicalRules | None = None,
        spike: SpikeConfig | None = None,
    ):
        if model_config.vocab_size != vocabulary.size:
            raise ValueError(
                f"the model has {model_config.vocab_size} ids, vocabulary {vocabulary.name!r} {vocabulary.size}"
            )
        self.model_config, self.vocabulary, self.mesh = model_config, vocabulary, mesh
        self.loss, self.optimizer = LossConfig.of(loss), OptimizerConfig.of(optimizer)
        self.rules = rules or sharding.LogicalRules()
        self.spike = spike or SpikeConfig()
        perceptual.check_depth(self.loss, image_decoder, vocabulary)
        self.frozen = image_decoder
        self.tx, self.schedule = make_optimizer(self.optimizer, total_steps)
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self.batch_sharding = NamedSharding(mesh, sharding.batch_spec(self.rules, mesh))
        self.layout = mesh_layout(model_config, mesh, self.rules)
        self.token_losses = mesh_token_losses(mesh, self.rules, self.loss)
        self._shapes = jax.eval_shape(self._make_state, jax.random.key(0))
        self.state_sharding = self._state_sharding()
        place = (self.state_sharding, self._replicated, self.batch_sharding)
        self.jitted_step = jax.jit(
            self._train_step, in_shardings=place, out_shardings=(place[0], place[1]), donate_argnums=0
        )
        self.jitted_eval = jax.jit(self._eval_step, in_shardings=(place[0].params, *place[1:]), out_shardings=place[1])

    # -- state ---------------------------------------------------------------------------------------------
    def init(self, seed: int) -> TrainState:
        """A fresh state on the mesh, a function of `seed` alone (not of the mesh)."""
        # On a CPU, optimizing the random generator's code takes longer than drawing slowly, once.
        quick = {"xla_backend_optimization_level": 0} if self.mesh.devices.flat[0].platform == "cpu" else None
        make = jax.jit(self._make_state, out_shardings=self.state_sharding, compiler_options=quick)
        return make(jax.random.key(seed))

    def abstract_state(self) -> TrainState:
        """The state as ShapeDtypeStructs with shardings: what to restore a checkpoint into, on any mesh."""
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            self._shapes,
            self.state_sharding,
        )

    def _make_state(self, key: jax.Array) -> TrainState:
        model_key, projection_key = jax.random.split(key)
        params = {
            "model": model_params(Transformer(self.model_config, rngs=nnx.Rngs(model_key))),
            "projection": {},
        }
        if self.frozen is not None:
            width, channels = self.model_config.d_model, self.frozen.codebook.shape[-1]
            params["projection"] = perceptual.init_projection(
                projection_key, width, channels, self.loss.perceptual_bias
            )
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, params, self.tx.init(params), zero, zero, spikes.initial(self.spike))

    def _state_sharding(self) -> TrainState:
        axes = {"model": model_logical_axes(self.model_config), "projection": {}}
        if self.frozen is not None:
            names = {"kernel": ("embed", "codebook"), "bias": ("codebook",)}
            axes["projection"] = {k: names[k] for k in self._shapes.params["projection"]}
        params = sharding.tree_shardings(self._shapes.params, axes, self.mesh, self.rules)
        opt_state = sharding.follow_parameters(self._shapes.opt_state, self._shapes.params, params, self.mesh)
        memory = jax.tree.map(lambda _: self._replicated, self._shapes.spikes)
        return TrainState(self._replicated, params, opt_state, self._replicated, self._replicated, memory)

    # -- batches -------------------------------------------------------------------------------------------
    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """This host's rows of a batch ([rows, L] NumPy arrays) -> the global batch on the mesh."""
        missing = sorted(set(BATCH_DTYPES) - set(batch))
        if missing:
            raise BatchError(f"the batch lacks {', '.join(missing)}; it has {', '.join(sorted(batch))}")
        rows, length = np.shape(batch["tokens"])
        shards, pieces = (sharding.axis_product(axes, self.mesh) for axes in (self.rules.batch, self.rules.length))
        total = rows * shards // len(rows_here(self.batch_sharding, (shards, pieces)))
        here = self.rows_here(total, length)
        return {
            name: global_array(here, np.asarray(batch[name], dtype), self.batch_sharding, (total, length))
            for name, dtype in BATCH_DTYPES.items()
        }

    def rows_here(self, rows: int, length: int) -> np.ndarray:
        """Ascending rows of a global batch [rows, length] that this process must read; BatchError as `check_batch`."""
        self.check_batch(rows, length)
        return rows_here(self.batch_sharding, (rows, length))

    def check_batch(self, rows: int, length: int) -> None:
        """BatchError unless a global batch of `rows` rows of `length` splits over micro-batches and mesh."""
        shards = sharding.axis_product(self.rules.batch, self.mesh)
        pieces = sharding.axis_product(self.rules.length, self.mesh)
        if rows % (shards * self.optimizer.accumulate):
            raise BatchError(
                f"data.batch_size = {rows} must be a multiple of {shards * self.optimizer.accumulate}: {shards} shards "
                f"of the mesh times optimizer.accumulate = {self.optimizer.accumulate}"
            )
        if length % pieces:
            raise BatchError(f"rows of {length} tokens do not split over mesh.sequence = {pieces}")

    def abstract_batch(self, rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """A global batch as ShapeDtypeStructs with shardings, for `lower`."""
        self.check_batch(rows, length)
        return {
            name: jax.ShapeDtypeStruct((rows, length), dtype, sharding=self.batch_sharding)
            for name, dtype in BATCH_DTYPES.items()
        }

    # -- the steps -----------------------------------------------------------------------------------------
    @functools.cached_property
    def _placed(self):
        """The frozen decoder on the mesh, replicated (None without one, or when the loss does not use it)."""
        return jax.device_put(self.frozen, self._replicated) if self.loss.perceptual_weight else None

    def train_step(self, state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, dict]:
        """(state, batch of `put`) -> (new state, metrics); `state` is donated and must not be used again.

        Metrics are float32 scalars on the device: the sums of `losses.class_sums` and "weighted_nll", "weight",
        "tokens" (non-padding), "perceptual_sum", "perceptual_count", all 0 for a skipped step; and the step's "loss",
        "perceptual" (mean, eq. 3; 0 without images), "z_loss" (mean of log^2 Z times the coefficient), "grad_norm"
        (before clipping), "learning_rate", "skipped" (1 if the step was skipped), "skipped_in_row", and where spikes
        are skipped "spikes" (1 if that was why). A step whose loss or gradient is not finite, or a spike, changes no
        parameter and no moment.
        """
        return self.jitted_step(state, self._placed, dict(batch))

    def eval_step(self, state: TrainState, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Sums over a batch, to be added up and divided at the end: those of `losses.class_sums`, "weighted_nll",
        "weight", "tokens", "perceptual_sum" and "perceptual_count". `state` stays usable."""
        return self.jitted_eval(state.params, self._placed, dict(batch))

    def lower(self, rows: int, length: int):
        """`jax.stages.Lowered` of the training step for a global batch [rows, length]; allocates nothing."""
        place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._replicated)  # noqa: E731
        frozen = jax.tree.map(place, self.frozen) if self.loss.perceptual_weight else None
        return self.jitted_step.lower(self.abstract_state(), frozen, self.abstract_batch(rows, length))

    def _forward(self, params, frozen, batch):
        """(next-token objective, perceptual sum, sums) of one micro-batch; the first two carry gradients."""
        model = model_from_params(self.model_config, params["model"])
        hidden = model(batch["tokens"], batch["positions"], batch["segment_ids"], self.layout)
        weights = batch["loss_weights"]
        tokens = self.token_losses(hidden, model.unembedding(), batch["targets"], weights)
        term = perceptual.PerceptualSums(jnp.zeros(()), jnp.zeros(()))
        if frozen is not None:
            term = perceptual.perceptual_sums(
                params["projection"], hidden, batch, batch["marks"], frozen, self.loss, self.vocabulary
            )
        sums = losses.class_sums(tokens.nll, weights, batch["target_class"]) | {
            "weighted_nll": jnp.sum(weights * tokens.nll),
            "weighted_log_z2": jnp.sum(weights * jnp.square(tokens.log_z)),
            "weight": jnp.sum(weights),
            "tokens": jnp.sum((batch["segment_ids"] > 0).astype(jnp.float32)),
            "perceptual_sum": jax.lax.stop_gradient(term.total),
            "perceptual_count": term.count,
        }
        return tokens.objective, term.total, sums

    def _mark(self, batch, step):
        """The batch with "marks": the perceptual term's positions or chosen images, over the global batch."""
        if not self.loss.perceptual_weight:
            return batch
        marks = perceptual.image_positions(batch, self.loss, self.vocabulary)
        if self.loss.perceptual_depth != "codebook":
            length, limit = self.vocabulary.image_length, self.loss.perceptual_images
            marks = perceptual.choose_images(marks, length, limit, step)
        return batch | {"marks": marks}

    def _eval_step(self, params, frozen, batch):
        _, _, sums = self._forward(params, frozen, self._mark(batch, 0))
        return {name: value for name, value in sums.items() if name != "weighted_log_z2"}

    def _loss_and_gradients(self, params, frozen, batch):
        """(loss, sums, gradients) of the whole batch, one micro-batch after the other."""
        total = losses.denominator(batch["loss_weights"], self.loss.normalize)
        images = jnp.maximum(jnp.sum(batch["marks"]), 1).astype(jnp.float32) if "marks" in batch else 1.0

        def share(params, batch):
            objective, term, sums = self._forward(params, frozen, batch)
            return objective / total + self.loss.perceptual_weight * term / images, sums

        gradient = jax.value_and_grad(share, has_aux=True)
        if self.optimizer.accumulate == 1:
            (loss, sums), gradients = gradient(params, batch)
            return loss, sums, gradients

        def add(carry, batch):
            (loss, sums), gradients = gradient(params, batch)
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), carry, (loss, sums, gradients)), None

        batches = self._micro_batches(batch)
        shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], batches))
        (loss, sums), gradients = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
        return jax.lax.scan(add, (loss, sums, gradients), batches)[0]

    def _micro_batches(self, batch):
        """[B, ...] -> [accumulate, B / accumulate, ...]: every device's own rows are dealt out in turn."""
        deal = lambda x: jnp.moveaxis(x.reshape(-1, self.optimizer.accumulate, *x.shape[1:]), 1, 0)  # noqa: E731
        place = NamedSharding(self.mesh, PartitionSpec(None, *self.batch_sharding.spec))
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(deal(x), place), batch)

    def _train_step(self, state: TrainState, frozen, batch):
        batch = self._mark(batch, state.step)
        loss, sums, gradients = self._loss_and_gradients(state.params, frozen, batch)
        norm = optax.global_norm(gradients)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        memory, told = state.spikes, {}
        if self.spike.threshold:
            spiked, memory = spikes.judge(self.spike, state.spikes, loss, norm)
            good, told = good & ~spiked, {"spikes": spiked.astype(jnp.float32)}
        updates, opt_state = self.tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(good, new, old))
        bad = jnp.where(good, 0, 1).astype(jnp.int32)
        new = TrainState(
            step=state.step + 1,
            params=keep(params, state.params),
            opt_state=keep(opt_state, state.opt_state),
            skipped=state.skipped + bad,
            skipped_in_row=jnp.where(good, 0, state.skipped_in_row + 1).astype(jnp.int32),
            spikes=memory,
        )
        metrics = self._metrics(sums, batch, good) | told
        metrics |= {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": self.schedule(state.step - state.skipped),
            "skipped": bad.astype(jnp.float32),
            "skipped_in_row": new.skipped_in_row.astype(jnp.float32),
        }
        return new, metrics

    def _metrics(self, sums, batch, good):
        """The sums, 0 when the step was skipped, and the two means that the loss adds to the next-token part."""
        sums = {name: jnp.where(good, value, 0.0) for name, value in sums.items()}
        total = losses.denominator(batch["loss_weights"], self.loss.normalize)
        sums["z_loss"] = self.loss.z_loss * sums.pop("weighted_log_z2") / total
        sums["perceptual"] = sums["perceptual_sum"] / jnp.maximum(sums["perceptual_count"], 1.0)
        return sums
