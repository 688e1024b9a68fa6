"""Adapters to trainers, one module each."""
