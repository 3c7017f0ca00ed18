"""Means and geometric means of models."""
