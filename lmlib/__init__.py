"""The library of *Language Models, Live*: one package a chapter, see the README."""

__version__ = "0.1.0"
