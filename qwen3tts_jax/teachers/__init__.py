"""Semantic teachers of codec distillation: speech encoders that run before training."""
