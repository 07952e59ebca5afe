"""The benchmark: a suite becomes cells, units and records."""

from defend.benchmarks.run import bench as bench
from defend.benchmarks.suite import load_suite as load_suite
