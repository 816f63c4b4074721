"""Tasks: their examples and how answers are scored. Nothing here runs a model."""
