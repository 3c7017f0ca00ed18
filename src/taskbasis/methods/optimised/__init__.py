"""The minimum of an objective, without data."""
