"""Fourfold: an open image-upscaling network. What is importable from here is the public API."""

__version__ = "0.1.0"

__all__ = ["__version__"]
