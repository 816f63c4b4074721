"""Set-up of one process: CPU cores, signals, compilation cache, memory in use, progress."""
