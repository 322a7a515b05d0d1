"""Commands of TAFE-Net."""
