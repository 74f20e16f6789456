"""The TRL-backed trainer, its data checks, evaluation and the promotion gate."""
