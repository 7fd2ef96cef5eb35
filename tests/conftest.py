import logging
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))  # helpers beside the tests


@pytest.fixture(autouse=True)
def _the_log_as_it_was():
    """Takes back what a test, a doctest among them, asks of the package's log."""
    logger = logging.getLogger("amct_pytorch")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers
