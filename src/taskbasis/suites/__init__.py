"""Evaluation suites that bring their own data: real models and real tasks, no download."""
