"""The algorithm of D-OPSD (arXiv 2605.05204) in pure torch: no Ray, no I/O, no devices.

Notation: sigma in [0, 1] is the noise level (1 is pure noise), x_sigma = (1 - sigma) x0 +
sigma eps, the velocity is u = eps - x0, an Euler step is x' = x + (sigma' - sigma) u.
"""
