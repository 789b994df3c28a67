"""A training run of one weight vector and batches that are a function of their number: the loop without its parts."""

import dataclasses
import json
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ar_omni_jax.config import base_config
from ar_omni_jax.training.loop import Run
from ar_omni_jax.training.signals import StopSignal
from ar_omni_jax.vocabulary import compact_vocabulary

VOCABULARY = compact_vocabulary(20, 8, 8, (2, 2))


class FakeTrainer:
    """w follows the batches' mean; the step of a batch in `bad` is not finite, that of batch `crash` raises."""

    def __init__(self, bad=(), width=4, crash=None):
        self.bad, self.width, self.crash = set(bad), width, crash
        self._step = jax.jit(self._train_step, donate_argnums=0)

    def init(self, seed):
        w = jax.random.normal(jax.random.key(seed), (self.width,))
        return FakeState(jnp.int32(0), {"model": {"w": w}, "projection": {}}, jnp.array(0, jnp.int32))

    def abstract_state(self):
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = jax.eval_shape(self.init, 0)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)

    def put(self, batch):
        return {name: jnp.asarray(value) for name, value in batch.items()}

    def train_step(self, state, batch):
        if int(batch["number"]) == self.crash:
            raise RuntimeError("the device is gone")
        return self._step(state, batch["tokens"], jnp.float32(int(batch["number"]) in self.bad))

    def _train_step(self, state, tokens, bad):
        w = state.params["model"]["w"]
        target = tokens.astype(jnp.float32).mean() / 100
        loss = jnp.square(w - target).mean() + 0.1 * jnp.sin(1e3 * w).mean()
        new = jnp.where(bad > 0, w, w - 0.1 * (w - target))
        in_row = jnp.where(bad > 0, state.in_row + 1, 0)
        good = 1.0 - bad
        metrics = {
            "loss": jnp.where(bad > 0, jnp.nan, loss),
            "nll/text": loss * 8 * good,
            "count/text": 8.0 * good,
            "tokens": 16.0 * good,
            "weight": 8.0 * good,
            "weighted_nll": loss * 8 * good,
            "skipped": bad,
            "skipped_in_row": in_row.astype(jnp.float32),
        }
        return FakeState(state.step + 1, {"model": {"w": new}, "projection": {}}, in_row), metrics

    def eval_step(self, state, batch):
        nll = jnp.square(state.params["model"]["w"]).sum()
        return {"nll/text": nll, "count/text": jnp.float32(1), "tokens": jnp.float32(16)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FakeState:
    step: jax.Array
    params: dict
    in_row: jax.Array


class FakeLoader:
    """Batch n is a function of n; ends after `total` of them."""

    def __init__(self, start, total=10**9, on_draw=None):
        self.step, self.total, self.on_draw, self.closed = start, total, on_draw, False

    def __iter__(self):
        return self

    def __next__(self):
        if self.step >= self.total:
            raise StopIteration
        n, self.step = self.step, self.step + 1
        if self.on_draw:
            self.on_draw(n)
        tokens = np.random.default_rng(n).integers(0, 100, (2, 8)).astype(np.int32)
        return {"tokens": tokens, "number": np.int32(n)}

    def close(self):
        self.closed = True


def make_run(workdir, *, bad=(), total=10**9, on_draw=None, sample=None, width=4, crash=None, **settings):
    """A run of 20 steps that logs every 3 and saves every 5; `settings` of config.train or config.optimizer."""
    config = base_config()
    config.train.update(steps=20, log_every=3, eval_every=0, checkpoint_every=5, max_skipped=4)
    for name, value in settings.items():
        section = "train" if name in config.train else "optimizer"
        config[section][name] = value

    def open_loader(split, start):
        return FakeLoader(start, *((total, on_draw) if split == "train" else (3,)))

    trainer = FakeTrainer(bad, width, crash)
    return Run(config, Path(workdir), trainer, open_loader, VOCABULARY, {"text": "t1"}, "data1", 100.0, sample)


def lines(workdir, kind="train"):
    records = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if r["kind"] == kind]


NUMBERS = ("step", "loss", "nll/text", "weighted_nll", "skipped")


def numbers(workdir):
    return [{name: record[name] for name in NUMBERS} for record in lines(workdir)]


def stop_at(step):
    """A StopSignal and the `on_draw` that raises it while `step` is under way."""
    stop = StopSignal()

    def on_draw(n):
        if n == step:
            stop.number = signal.SIGTERM

    return stop, on_draw
