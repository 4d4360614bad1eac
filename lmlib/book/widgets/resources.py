"""Widgets of chapter 4, one module each: this one is imported by name, and brings them all."""

from lmlib.book.widgets import (
    resources_fit,
    resources_formats,
    resources_how_long,
    resources_layout,
    resources_roofline,
    resources_serve,
    resources_train_what,
)

__all__ = [
    "resources_fit",
    "resources_formats",
    "resources_how_long",
    "resources_layout",
    "resources_roofline",
    "resources_serve",
    "resources_train_what",
]
