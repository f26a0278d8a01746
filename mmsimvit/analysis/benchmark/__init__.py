"""Time and memory of operators and backbones, side by side."""
