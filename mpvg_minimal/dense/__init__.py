"""Segmentation and detection: heads, targets, files, and the command `python -m mpvg_minimal.dense`."""
