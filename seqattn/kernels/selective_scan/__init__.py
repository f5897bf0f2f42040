"""The selective scan of Mamba and LBMamba: one operator, plain, windowed, reversed, of any lengths."""

from seqattn.kernels.selective_scan.public import selective_scan, selective_scan_step

__all__ = ["selective_scan", "selective_scan_step"]
