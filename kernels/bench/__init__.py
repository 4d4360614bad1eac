"""Correctness first, then time: every kernel beside its peers on the same machine in the same run."""
