"""Worlds that we can draw with exact truth. `tabletop` is the first."""
