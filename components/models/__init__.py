"""The members of the ensemble. Each learns the outcome under every option, cross-fitted, and can say so again from its files."""
