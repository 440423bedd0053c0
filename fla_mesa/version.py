"""The version, on its own: whoever reports it need not import the package."""

__version__ = "0.1.0"
