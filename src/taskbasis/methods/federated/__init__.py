"""Aggregators of one-shot federated learning."""
