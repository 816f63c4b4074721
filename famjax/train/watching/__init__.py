"""What watches a training: the live line, metrics, norms, diagnostics, the guard against NaN."""
