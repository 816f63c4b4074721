"""Thin Flax NNX modules: they own weights and name their axes; the mathematics is in `attention`."""
