"""One machine's devices: holds models, runs work orders, speaks the runner API."""
