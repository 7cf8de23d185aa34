"""`dopsd doctor`: what would stop a run here, and what to do about it."""
