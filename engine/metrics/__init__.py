"""Metrics beyond top-1, as pure functions of numbers, arrays and sums over ledger rows; none of them imports torch."""
