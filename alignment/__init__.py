"""Post-training for language models: algorithms on one loop, one packed layout and one rollout engine."""
