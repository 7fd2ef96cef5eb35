"""Read-only facts about a model, from one capture of it as an ONNX graph."""

from .facts import Layer, ModelFacts, analyze

__all__ = ["Layer", "ModelFacts", "analyze"]
