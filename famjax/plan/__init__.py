"""Compiles training and serving for TPU slices without a TPU: memory, FLOPs, collectives, an estimate of time."""
