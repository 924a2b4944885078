"""The decision: who is asked, what was tried, what would help, what is safe."""
