"""The factors by which queries grow with their positions."""

import numpy as np

from bei.architectures.positions import QueryGrowth


def factors(growth: QueryGrowth, positions: int) -> np.ndarray:
    """float32[positions]: the factor of each position."""
    passed = np.arange(positions) // growth.trained
    return (1 + growth.strength * np.log1p(passed)).astype(np.float32)
