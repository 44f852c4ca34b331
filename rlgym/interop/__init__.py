"""Bridges to other libraries' worlds and models."""
