"""The plan of an export: what is known before a network is traced or a weight is read."""
