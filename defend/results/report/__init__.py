"""One offline HTML file and a CSV from run folders."""

from defend.results.report.page import write_report as write_report
