"""Metrics as plain functions of texts, vectors and pictures: no model, no file, no network; one concept a file."""
