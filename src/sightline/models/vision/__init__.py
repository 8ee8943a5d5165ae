"""Pixels → tokens."""
