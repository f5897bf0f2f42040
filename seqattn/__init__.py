"""seqattn: sequence models and scan/attention kernels for time series, speech and health records."""

__version__ = "0.1.0"
