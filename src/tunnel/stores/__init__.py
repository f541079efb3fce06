"""Stores of a cluster, one file a kind: nothing else knows how one works."""
