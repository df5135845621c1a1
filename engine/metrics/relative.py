"""How much of a clean accuracy is left on other images."""


def relative_drop(clean: float, shifted: float) -> float | None:
    """(shifted - clean) / clean: -0.1 when one in ten of the right answers is lost; None where clean is 0.

    ValueError for what is no share in [0, 1].
    """
    for value in (clean, shifted):
        if not 0 <= value <= 1:
            raise ValueError(f"accuracy {value} is no share; give a number from 0 to 1, not per cent")
    return None if clean == 0 else shifted / clean - 1.0
