"""Pictures → depth: DPT neck and head, Depth Anything, and the losses that train them."""
