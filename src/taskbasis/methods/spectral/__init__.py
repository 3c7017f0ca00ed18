"""Per matrix, by its singular values."""
