"""A record as one HTML page that needs nothing else: no network, no scripts, no other files."""
