"""What runs inside a vLLM server's own environment: it imports nothing else of ours."""
