"""What a codec is compared with."""
