"""Step, loop, state and checkpoints. Runs with torch, numpy, pyarrow and safetensors alone."""
