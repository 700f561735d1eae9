"""Plug-ins: one architecture a file, with ``build(card)`` returning a network of ``(before, after) -> logits``."""
