"""With what was learnt from data: importance scores and activation moments."""
