"""The training recipe on transformers' Trainer: `fla-mesa train`."""
