"""Benchmarks against the peers: bench_<family>.py, what they share in harness/, and training runs in camvid/."""
