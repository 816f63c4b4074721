"""Training data: tasks that produce batches."""
