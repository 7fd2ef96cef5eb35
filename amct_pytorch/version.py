"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("amct_pytorch")
except PackageNotFoundError:  # a source tree that was built in place and not installed
    __version__ = "0+unknown"
