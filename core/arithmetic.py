"""Integer arithmetic."""


def ceil_div(numerator: int, denominator: int) -> int:
    """The quotient, rounded up to a whole number."""
    return -(-numerator // denominator)
