"""What surrounds the computation: model directories and checkpoints."""
