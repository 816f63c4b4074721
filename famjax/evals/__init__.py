"""Evaluations: what a model remembers, with intervals, tables and plots."""
