"""The memory: pure functions on arrays. No module, no configuration files, no hidden state."""
