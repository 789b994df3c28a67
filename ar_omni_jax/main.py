"""Trains a model: python -m ar_omni_jax.main --config=configs/smoke.py --workdir=DIR [--config.key=value ...]

The same command resumes an interrupted run. WORKDIR gets

  checkpoints/       the newest states, see ar_omni_jax/checkpoint.py
  metrics.jsonl      one line of numbers every config.train.log_every steps, and one a validation
  tensorboard/       the same for TensorBoard, with the samples
  samples/           text, PNG and WAV that the model made from held-out prompts
  config.json        the settings of the last start
  parameters.txt     every parameter with its shape and size
  profile/           profiler traces, of --profile's steps or of those after SIGUSR1
  data/              only where the config makes its own data

With --check it only reads the settings and says what follows from them: nothing is made, read or trained.

Exit code: 0 when training finished, 128 + n when signal n (Ctrl-C: 130, SIGTERM: 143) ended it after the state was
saved, 75 when it hung for config.train.hang_exit_s, 1 for an error, 2 for a wrong command line. A second signal ends
the program at once. Several processes (--distributed) end alike: with the same signal's code, with 1 when one of them
had an error, with 75 when one is lost. What may go wrong, what is lost then and what is said: docs/survival.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ar_omni_jax import prepare
from ar_omni_jax.checkpoint import CheckpointError
from ar_omni_jax.config import derived, describe_derived, describe_keys, load_config, model_config
from ar_omni_jax.documents import DocumentError
from ar_omni_jax.files import only_writer
from ar_omni_jax.machine import take_gpu_memory
from ar_omni_jax.model.config import ConfigError
from ar_omni_jax.overrides import split_overrides
from ar_omni_jax.parallel.distributed import HostError, together
from ar_omni_jax.parallel.mesh import MeshError, make_mesh
from ar_omni_jax.parallel.sharding import ShardingError
from ar_omni_jax.tokenizers.bundle import Tokenizers, load_tokenizers
from ar_omni_jax.tokenizers.text import TokenizerError
from ar_omni_jax.training.accounting import describe_flops
from ar_omni_jax.training.loop import FINISHED, Run, TrainingError, train
from ar_omni_jax.training.losses import LossConfig, LossError
from ar_omni_jax.training.optimizer import OptimizerConfig, OptimizerError
from ar_omni_jax.training.perceptual import FrozenImageDecoder, depth_scale
from ar_omni_jax.training.profiler import ProfileError, parse_steps
from ar_omni_jax.training.progress import say
from ar_omni_jax.training.signals import StopSignal
from ar_omni_jax.training.spikes import SpikeConfig
from ar_omni_jax.training.step import BatchError, Trainer
from ar_omni_jax.vocabulary import JointVocabulary, VocabularyError, chameleon_vocabulary
from data_pipelines.dataset_info import FILE_NAME, DatasetInfo, read_info
from data_pipelines.loader import make_loader
from data_pipelines.mixture import MixtureError
from data_pipelines.schema import SchemaError

# What a person can mend: told in one line. Anything else is a fault of the program and keeps its traceback.
FOR_PEOPLE = (
    *(ConfigError, CheckpointError, TrainingError, VocabularyError, SchemaError, MixtureError, TokenizerError),
    *(LossError, OptimizerError, MeshError, ShardingError, BatchError, DocumentError, prepare.PrepareError, OSError),
    *(HostError, ProfileError),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options, overrides = parse_arguments(arguments)
    take_gpu_memory()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    stop = StopSignal()
    try:
        config = load_config(options.config, overrides)
        profile = parse_steps(options.profile) if options.profile else None
        if options.check:
            say(check_settings(config))
            return 0
        with together() if options.distributed else contextlib.nullcontext():
            make_workdir(options.workdir)
            with only_writer(options.workdir) if jax.process_index() == 0 else contextlib.nullcontext():
                run = dataclasses.replace(
                    assemble(config, options.workdir),
                    profile=profile,
                    preemption_notice=options.preemption_notice,
                    grace_s=options.grace,
                )
                stop.install()
                outcome = train(run, stop)
    except FOR_PEOPLE as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:  # before the loop listens to signals itself
        print("interrupted before training; run the same command again to go on", file=sys.stderr, flush=True)
        return 130
    return 0 if outcome == FINISHED else 128 + (stop.number or 15)


def parse_arguments(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """(options, overrides as (key, text)); "--config.key=value" and "--config.key value" are the same."""
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.main",
        description=__doc__,
        epilog=f"settings, with their defaults where the config file says nothing:\n{describe_keys()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="such as configs/smoke.py")
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the run; the same one resumes it")
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes: on Cloud TPU, Slurm and MPI they find each other; elsewhere by "
        "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID",
    )
    parser.add_argument(
        "--profile", metavar="START:STOP", help="write a profiler trace of these steps, the first and the last of them"
    )
    parser.add_argument(
        "--preemption_notice",
        default="",
        metavar="gce|URL",
        help="a page that says TRUE when this machine is to be taken away, asked every few seconds: save, then stop",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="between SIGTERM and the kill; a save that takes longer is told (default %(default)s; 0: unknown)",
    )
    parser.add_argument("--check", action="store_true", help="read the settings, say what follows, and stop")
    options, rest = parser.parse_known_args(arguments)
    return options, split_overrides(rest, parser.error)


# ---------------------------------------------------------------------------------------- putting a run together


def assemble(config: ConfigDict, workdir: Path) -> Run:
    """Everything that the loop needs, made from the settings; errors come before anything is trained."""
    vocabulary, tokenizers = load_vocabulary(config)
    path = prepare.packed_data(config, workdir, tokenizers)
    info = check_data(config, path, vocabulary, tokenizers)
    model = model_config(config.model, vocabulary.size)
    mesh = make_mesh(config.mesh.to_dict())
    shape = "x".join(str(n) for n in mesh.devices.shape)
    say(f"{jax.device_count()} x {jax.devices()[0].device_kind}, mesh {shape} ({', '.join(mesh.axis_names)})")
    say(describe_derived(derived(config, model)))
    say(describe_flops(model, config.data.length))
    looks = config.loss.perceptual_weight and tokenizers
    decoder = image_decoder(tokenizers, config.loss.perceptual_depth) if looks else None
    trainer = make_trainer(config, vocabulary, mesh, decoder)

    def open_loader(split: str, start_step: int):
        return make_loader(
            config.data.to_dict() | {"path": path},
            split=split,
            global_batch=config.data.batch_size,
            seed=config.seed,
            start_step=start_step,
            vocabulary_fingerprint=vocabulary.fingerprint,
            rows=trainer.rows_here(config.data.batch_size, config.data.length),
        )

    return Run(
        config=config,
        workdir=workdir,
        trainer=trainer,
        open_loader=open_loader,
        vocabulary=vocabulary,
        tokenizers=tokenizers.identities if tokenizers else info.tokenizers,
        data=hashlib.sha256((path / FILE_NAME).read_bytes()).hexdigest()[:16],
        flops_per_token=model.flops_per_token(config.data.length),
        sample=make_sampler(config, path, tokenizers, trainer),
    )


def make_trainer(config: ConfigDict, vocabulary: JointVocabulary, mesh: Mesh, decoder: FrozenImageDecoder | None):
    """The Trainer that the settings ask for on `mesh`; nothing is allocated. Errors of settings as in `Trainer`."""
    return Trainer(
        model_config(config.model, vocabulary.size),
        config.loss.to_dict(),
        config.optimizer.to_dict(),
        vocabulary,
        mesh,
        decoder,
        total_steps=config.train.steps,
        spike=SpikeConfig(config.train.skip_spikes),
    )


def check_settings(config: ConfigDict) -> str:
    """What follows from the settings, in words; the error of the part that cannot use them."""
    model = model_config(config.model, load_vocabulary(config)[0].size)
    LossConfig.of(config.loss.to_dict())
    OptimizerConfig.of(config.optimizer.to_dict())
    rows = f"rows: {config.data.length} tokens, {config.data.batch_size} a step\n"  # launch/run_local.sh reads this
    return rows + describe_derived(derived(config, model))


def make_workdir(workdir: Path) -> None:
    """Makes the folder; OSError of the file system when it cannot be written."""
    workdir.mkdir(parents=True, exist_ok=True)
    probe = workdir / ".writable"
    probe.write_text("")
    probe.unlink(missing_ok=True)


def load_vocabulary(config: ConfigDict):
    """(JointVocabulary, Tokenizers or None). "chameleon" is the published layout alone, without tokenizers."""
    if config.data.tokenizers == "chameleon":
        return chameleon_vocabulary(), None
    # Training needs a codec for the perceptual loss alone; samples load what they show.
    need = ("image",) if config.loss.perceptual_weight else ()
    tokenizers = load_tokenizers(config.data.tokenizers, need=need)
    return tokenizers.vocabulary, tokenizers


def check_data(config: ConfigDict, path: Path, vocabulary, tokenizers: Tokenizers | None) -> DatasetInfo:
    """dataset.json of the packed data, refused (ConfigError, SchemaError, VocabularyError) when of another make."""
    info = read_info(path, "packed", vocabulary.fingerprint)
    template = info.settings.get("template")
    if template and template != config.data.template:
        raise ConfigError(
            f"{path} was built with template {template!r}, config.data.template = {config.data.template!r}; set "
            f"--config.data.template={template}"
        )
    held_out = ("validation",) if config.train.eval_every or config.train.sample_every else ()
    for split in ("train", *held_out):
        if split not in info.splits:
            off = "" if split == "train" else "; or set config.train.eval_every=0 and config.train.sample_every=0"
            raise SchemaError(f"{path} has no {split} split, only {', '.join(sorted(info.splits))}: pack one{off}")
    for name, identity in (tokenizers.identities if tokenizers else {}).items():
        if info.tokenizers.get(name, identity) != identity:
            raise ConfigError(
                f"{path} was built with {name} tokenizer {info.tokenizers[name]}, config.data.tokenizers = "
                f"{config.data.tokenizers!r} has {identity}; use the tokenizers it was built with, or build it again"
            )
    return info


def image_decoder(tokenizers: Tokenizers, depth: str = "codebook") -> FrozenImageDecoder:
    """The frozen part of the image tokenizer that the perceptual loss looks through, to `depth`."""
    from ar_omni_jax.tokenizers.image import decoder_features

    image = tokenizers.image
    structure, weights = image.split_decoder()
    depths = tuple(depth for depth in image.depths if depth != "codebook")
    frozen = FrozenImageDecoder(
        image.codebook, lambda decoder, z, depth: decoder_features((structure, decoder), z, depth), weights, depths
    )
    if depth not in depths:  # the codebook, or what the trainer will refuse
        return frozen
    return dataclasses.replace(frozen, scale=depth_scale(frozen, depth, tokenizers.vocabulary.image_grid))


def make_sampler(config: ConfigDict, path: Path, tokenizers: Tokenizers | None, trainer: Trainer):
    """What `Run.sample` is: answers to held-out prompts, or None when the settings ask for none."""
    if not config.train.sample_every or tokenizers is None:
        return None
    from ar_omni_jax.samples import Sampler

    return Sampler(trainer.model_config, tokenizers, path)


if __name__ == "__main__":
    sys.exit(main())
