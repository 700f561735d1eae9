"""Plug-ins: one dataset layout a file, with ``recognise(root)`` and ``read_catalog(root, options)``."""
