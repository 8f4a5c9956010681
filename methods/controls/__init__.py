"""Controls: the rows that every comparison needs."""
