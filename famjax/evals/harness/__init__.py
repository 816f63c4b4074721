"""lm-evaluation-harness: any of its tasks on a model directory, and its results where ours are (extra `lm-eval`)."""
