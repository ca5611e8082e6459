"""Which model a name means, loading it, and the one that needs no hub."""
