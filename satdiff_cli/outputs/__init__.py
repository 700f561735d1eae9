"""Plug-ins: one result kind a file, with ``write(prediction, out, options)``."""
