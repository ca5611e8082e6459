"""Which tokens are kept: figures, pages, terminal, advice."""
