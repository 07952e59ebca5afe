"""The benchmark: a suite becomes cells, units and records. `run.bench` is its entry."""
