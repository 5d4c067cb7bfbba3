"""Training and evidence: from a recipe to converters, honest numbers about them, and bundles."""
