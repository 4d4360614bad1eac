"""GPU kernels, one per file. They import nothing of lmlib."""
