"""Inference: loading a model, prefill of texts of any length, scoring, decoding, sessions."""
