"""`dopsd init`: a recipe of one's own, from five answers."""
