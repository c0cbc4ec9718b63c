"""A package, so that gin finds its files by their path in it, with T5X as well."""
