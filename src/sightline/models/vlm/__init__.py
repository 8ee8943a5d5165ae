"""Models that see and speak: a vision tower, a bridge, a language model. One file per family."""
