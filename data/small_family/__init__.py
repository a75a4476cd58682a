"""The corpus of the small voice family: free texts, synthesised and recorded speech."""
