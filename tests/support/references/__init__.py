"""Samplers beside independent references: cases as data, and how far each run is off."""
