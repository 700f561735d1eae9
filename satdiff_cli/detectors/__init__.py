"""Plug-ins: one label-free method a file, with ``MARGIN_PX`` and ``fit(patches, seed)`` returning a ``ChangeModel``."""
