"""Speech tokenizers as a user holds them: waves to codes and back."""
