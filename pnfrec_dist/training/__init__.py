"""Step, loop, state and checkpoints. Needs only torch, numpy, pyarrow and safetensors."""
