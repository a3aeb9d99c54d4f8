"""Everything compiled, and what chooses and governs it."""
