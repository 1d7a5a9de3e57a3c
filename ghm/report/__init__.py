"""Finished runs in, Markdown, figures and plot data out. Computes no metric."""

from ghm.report.page import write

__all__ = ["write"]
