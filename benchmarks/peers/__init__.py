"""What benchmarks share: turns in fresh processes, ceilings, other people's training steps."""
