"""Concepts of a library whose roll-outs and scores come from pools that all of them share."""
