"""Answers from maps: sites, regions by samples, differences between samples."""
