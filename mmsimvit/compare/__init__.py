"""Backbones compared under one protocol: what is run, what is measured, how sure it is, and a report."""
