"""Post-training for language models: algorithms on one loop, one packed layout and one rollout engine."""

import logging

# an optional kernel of its own that it misses at every start
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
