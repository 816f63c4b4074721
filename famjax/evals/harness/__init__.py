"""lm-evaluation-harness: its tasks on model directories, and its results in our format (extra `lm-eval`)."""
