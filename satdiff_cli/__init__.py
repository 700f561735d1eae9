"""Find what changed between two satellite or aerial images of a place."""

__version__ = "0.1.0"
