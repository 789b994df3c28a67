"""Measurements of the data pipelines on one machine: `python -m data_pipelines.benchmark`."""
