"""Teach a vision-language model new skills by retraining only chosen components, and prove what changed and what was forgotten."""

__version__ = "0.1.0"
