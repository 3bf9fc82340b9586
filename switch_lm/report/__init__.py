"""A report on runs: what won, by how much, at which cost, and whether that is resolved."""

from __future__ import annotations

from switch_lm.report.sources import ReportError
from switch_lm.report.write import DEFAULT_NAME, Written, write_report

__all__ = ["DEFAULT_NAME", "ReportError", "Written", "write_report"]
