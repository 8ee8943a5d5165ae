"""The type checker that runs with the tests: an int may stand where a float is declared (PEP 484), as in Python itself."""

from beartype import BeartypeConf, beartype

typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
