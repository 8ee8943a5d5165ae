"""Speeds beside the peers that are installed. Peers are imported here only, and only while they are measured."""
