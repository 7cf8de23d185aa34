"""``dopsd reproduce paper``: the paper's LoRA comparison on Z-Image-Turbo."""
