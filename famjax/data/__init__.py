"""Training data: tasks that make batches."""
