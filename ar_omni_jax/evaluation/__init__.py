"""Evaluation: metrics, and the judges of the toy world. Nothing here is the model that is judged."""
