"""Running in little memory: what it takes, what is left, and what to do when it ends."""
