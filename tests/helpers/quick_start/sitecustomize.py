"""Every Python process that has this folder in PYTHONPATH seldom looks for garbage.

Importing torch and diffusers makes a million objects and no garbage: with Python's own thresholds,
looking for some is a fifth of what a worker's start costs, and the tests start hundreds. Nor does
it look when it ends, as Python otherwise does several times.
"""

import atexit
import gc

gc.set_threshold(50_000, 20, 20)
atexit.register(gc.freeze)
