"""Measures that torchmetrics lacks; the speech ones need the extra `speech` for PESQ, STOI and other rates."""

from seqattn.metrics.speech import speech_metrics

__all__ = ["speech_metrics"]
