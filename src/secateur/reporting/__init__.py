"""From the records of Runs to what people read: one sentence, a table, files, a page.

This package reads plain dicts (the run.json of each Run) and imports no framework.
"""

from secateur.reporting.aggregation import rows
from secateur.reporting.page import html_available, write_html
from secateur.reporting.records import load_runs
from secateur.reporting.sentence import headline
from secateur.reporting.table import rich_table, write_csv, write_json, write_markdown

__all__ = [
    "headline",
    "html_available",
    "load_runs",
    "rich_table",
    "rows",
    "write_csv",
    "write_html",
    "write_json",
    "write_markdown",
]
