"""Setting up one process: CPU cores, signals, compiled programs on disk, memory in use, progress."""
