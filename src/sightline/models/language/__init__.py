"""Words ⇄ tokens."""
