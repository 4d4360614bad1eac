"""From chapters without outputs to the built site: `python -m lmlib.book.pipeline`.

One module a step:

- `install`: the virtual environment (runs before anything is installed);
- `contents`: which chapters and pages there are;
- `fingerprint`: has a chapter changed since it was last executed?
- `run_chapter`: execute one notebook, in a process of its own;
- `execute`: all of them over the cores, watching time and memory;
- `pages`: the generated pages, *Execution* and *Claims*;
- `site`: the staging tree and Jupyter Book;
- `serve`: the built site on localhost.
"""
