"""Widgets of chapter 2, one module each: this one is imported by name, and brings them all."""

from lmlib.book.widgets import architecture_attention, architecture_parameters, architecture_rope

__all__ = ["architecture_attention", "architecture_parameters", "architecture_rope"]
