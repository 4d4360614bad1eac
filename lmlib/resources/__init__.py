"""Memory, FLOPs, time and cost of transformers: exact integers, standard library only."""
