"""Finished runs in, Markdown, figures and plot data out. Computes no metric."""

from ghm.report.page import publish, write

__all__ = ["publish", "write"]
