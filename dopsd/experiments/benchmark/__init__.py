"""`dopsd benchmark`: the trainer beside a plain loop, on the same weights, data and samples."""
