"""The report of an accuracy-based automatic calibration, as a page for people."""

from .html import render

__all__ = ["render"]
