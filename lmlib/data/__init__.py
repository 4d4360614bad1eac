"""Data: loaders for real corpora and the generated micro-world."""
