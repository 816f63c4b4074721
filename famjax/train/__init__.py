"""Training: loss, optimizer, step and loop."""
