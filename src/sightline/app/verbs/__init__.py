"""The verbs: each a thin function over models, search, training and evaluation, with its result as a dataclass.

`sightline.VERB(...)` in Python and `sightline VERB ...` on the command line call the same function.
"""
