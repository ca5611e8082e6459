"""Formats in, tokenized and labeled examples out; and the generated data set."""
