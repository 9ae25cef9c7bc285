"""How published files name the weights that diffusers and transformers name otherwise."""
