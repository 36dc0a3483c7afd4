"""Verification of a cache: files against checksums, values, catalog against arrays."""
