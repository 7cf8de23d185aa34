"""Concept libraries: many concepts, each trained as if alone into an adapter of its own."""
