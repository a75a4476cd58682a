"""The neural parts, one a file."""
