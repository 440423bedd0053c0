"""lm-evaluation-harness on checkpoints of every architecture: its public API, this package's model and tasks, one table."""
