"""Pictures → boxes: DETR, how its guesses are matched with the truth, and its losses."""
