"""Widgets of chapter 5, one module each: this one is imported by name, and brings them all."""

from lmlib.book.widgets import kernels_chip, kernels_matmul_tiles

__all__ = ["kernels_chip", "kernels_matmul_tiles"]
