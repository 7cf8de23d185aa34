"""What only a GPU can show. ``python -m tests.gpu`` runs it; elsewhere every test is skipped."""

DEVICE = "DOPSD_GPU_TESTS"
"""In the environment: the device that the tests compute on. Without it they are skipped."""
