"""The request, online."""
