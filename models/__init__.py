"""The backbone, the classifier built on it, and their weights."""

from diveparse.models.classifier import ClassifierOutputs, DiveClassifier, build_classifier
from diveparse.models.huggingface import save_huggingface
from diveparse.models.timesformer import TimeSformer, build_backbone
from diveparse.models.weights import load_backbone, save_backbone

__all__ = [
    "ClassifierOutputs",
    "DiveClassifier",
    "TimeSformer",
    "build_backbone",
    "build_classifier",
    "load_backbone",
    "save_backbone",
    "save_huggingface",
]
