"""Writes the report of a run: one HTML page with the outputs, the means, the figures and the findings.

    python -m dera_jax.report FOLDER

The page is made from what the run wrote to its folder; nothing is decoded again. It needs no network.
"""

from dera_jax.report.about import device, record_about
from dera_jax.report.page import PAGE, has_report, write

__all__ = ["PAGE", "device", "has_report", "record_about", "write"]
