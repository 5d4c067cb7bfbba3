"""Recipes: what a run is made of. schema says what may be said, compose builds it, check holds it against the rules."""
