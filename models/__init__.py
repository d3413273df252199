"""The backbone, the classifier built on it, and their weights."""

from diveparse.models.build import build_backbone, load_backbone
from diveparse.models.classifier import DiveClassifier, build_classifier
from diveparse.models.timesformer import TimeSformer
from diveparse.models.weights.huggingface import save_huggingface
from diveparse.models.weights.sources import save_backbone

__all__ = [
    "DiveClassifier",
    "TimeSformer",
    "build_backbone",
    "build_classifier",
    "load_backbone",
    "save_backbone",
    "save_huggingface",
]
