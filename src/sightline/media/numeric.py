"""Numbers as callers hold them, for signatures. (beartype, which checks them in tests, does not count int as float.)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Real = float | int | np.floating[Any] | np.integer[Any]
Numbers = np.ndarray | Sequence[Any] | Real  # numbers, nested to any depth
