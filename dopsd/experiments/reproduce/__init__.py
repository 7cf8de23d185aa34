"""``dopsd reproduce``: the paper's comparison on the shapes world, trained and judged here."""
