"""Stages of the pipelines: what they compute, how they run, and the locks that DVC leaves."""
