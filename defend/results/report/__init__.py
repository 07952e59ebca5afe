"""One HTML file that works offline, with a CSV and a JSON file beside it, from run folders."""

from defend.results.report.page import write_report as write_report
