"""Which model a name means, loading it, and the one that needs no hub."""

DTYPES = ("float32", "bfloat16", "float16", "auto")  # what weights are loaded in; auto: as they are stored
