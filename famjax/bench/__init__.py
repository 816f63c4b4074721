"""Benchmarks: speed and memory of FAM, compared with baselines without memory and with other packages."""
