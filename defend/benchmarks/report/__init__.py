"""One offline HTML file and a CSV from run folders."""

from defend.benchmarks.report.page import write_report as write_report
