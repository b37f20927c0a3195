"""Scaling over devices: measured, and predicted by a cost model."""
