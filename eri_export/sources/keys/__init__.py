"""What a network's weights are called in a file, and what their shapes say of its config."""
