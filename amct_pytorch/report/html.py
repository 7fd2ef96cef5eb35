"""The HTML report: one page that needs nothing beside itself, neither files nor a network.

The page is read by people who were not there when the search ran: it says first whether the
metric holds, then which layers were given up for it, then all the numbers. What it shows comes from
`report.json`; layout and words are in `report.html.j2`, the positions of the marks of both charts
in `sensitivity.py` and `progress.py`.
"""

from __future__ import annotations

from typing import Any

import jinja2

from . import text
from .chart import progress_of
from .sensitivity import ranking_of

TEMPLATE = "report.html.j2"
FILTERS = [text.number, text.exact, text.brief, text.size, text.seconds, text.percent]


def render(document: dict[str, Any]) -> str:
    """The page that shows `document`, the content of `report.json`; any value of it may be None.

    >>> page = render({"outcome": {"satisfied": True}, "layers": [{"name": "<conv>"}]})
    >>> "The accuracy goal is met" in page, "<conv>" in page
    (True, False)
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("amct_pytorch", "report"),
        autoescape=True,  # names of layers and classes are the user's
        undefined=jinja2.ChainableUndefined,  # whole sections may be None
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({filter_.__name__: filter_ for filter_ in FILTERS})
    return environment.get_template(TEMPLATE).render(
        doc=document,
        ranking=ranking_of(
            document.get("layers") or [], (document.get("settings") or {}).get("sensitivity")
        ),
        progress=progress_of(
            document.get("trials") or [], (document.get("outcome") or {}).get("original_metric")
        ),
    )
