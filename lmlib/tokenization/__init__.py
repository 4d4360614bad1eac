"""Tokenization: from strings to bytes to tokens."""
