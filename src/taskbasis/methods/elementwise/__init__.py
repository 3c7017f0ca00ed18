"""Entry by entry: which values are kept, which sign wins, what is averaged."""
