"""Compiles the training step for machines that are not there: does it fit, what does it move, what may it reach.

`python -m ar_omni_jax.compile_check --config=FILE --target=NAME`; `--help` lists the targets. Nothing in this file
imports JAX: the environment must be set before (`environment.py`).
"""
