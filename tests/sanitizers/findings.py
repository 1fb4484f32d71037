"""Fails when a sanitizer left a report in the folder that is its argument, and prints the reports.

    findings.py build/asan/findings
"""
import pathlib
import sys

reports = sorted(pathlib.Path(sys.argv[1]).glob("report.*"))
for report in reports:
    print(f"--- {report}\n{report.read_text(errors='replace')}")
print(f"{len(reports)} reports")
sys.exit(1 if reports else 0)
