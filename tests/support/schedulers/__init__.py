"""A checkpoint's scheduler run by diffusers, beside our sampler of the same config."""
