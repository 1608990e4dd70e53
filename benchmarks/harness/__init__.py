"""What several benchmarks share: races, reports, memory, peers, shapes, and a visit to a GPU machine."""
