"""Training and serving compiled for TPUs that are not here: memory, operations, collectives, an estimate of time."""
