"""Fewer bytes for what training keeps."""
