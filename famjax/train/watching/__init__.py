"""Monitoring of a training: progress line, metrics, norms, diagnostics, the guard against NaN."""
