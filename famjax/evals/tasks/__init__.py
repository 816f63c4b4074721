"""Tasks: where their examples come from and what an answer to one is worth. No model takes part."""
