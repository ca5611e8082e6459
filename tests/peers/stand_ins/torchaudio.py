"""LLaMA-Factory imports it always and uses it for sound alone; PyPI's does not load beside a torch for CPUs."""
