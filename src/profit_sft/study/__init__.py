"""A study: many training runs that differ in one thing, measured on the same problems and compared honestly."""
