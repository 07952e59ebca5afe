"""Suites, cells, units, records: the benchmark."""

from defend.benchmarks.run import bench as bench
from defend.benchmarks.suite import load_suite as load_suite
from defend.benchmarks.units import read_unit as read_unit
