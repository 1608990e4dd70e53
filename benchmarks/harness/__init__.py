"""Shared parts of the benchmarks: races, reports, memory, peers, shapes, and a visit to a GPU machine."""
