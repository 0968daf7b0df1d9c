"""Captioning through the embedding space: a decoder of text features, fed with image features."""

from __future__ import annotations

from modalign.evaluation.captioning.corpus import read_captions
from modalign.evaluation.captioning.decoder import CaptionDecoder, Settings
from modalign.evaluation.captioning.memory import project_on_memory
from modalign.evaluation.captioning.training import train_decoder

__all__ = ["CaptionDecoder", "Settings", "project_on_memory", "read_captions", "train_decoder"]
