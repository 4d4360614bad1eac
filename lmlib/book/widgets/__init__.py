"""The book's widgets, one module a chapter, declared with ``lmlib.book.declare``; standard library only."""
