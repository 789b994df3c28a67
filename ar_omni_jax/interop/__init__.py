"""Weights in and out of other programs: backbone layouts, image and speech codecs, text tokenizers.

The only part of the package that may use PyTorch, and it imports it where it is used: reading a torch file is all that
needs it. `python -m ar_omni_jax.convert` is the command.
"""
