"""One fit loop for teacher and student, its objectives, steps and checkpoints."""
