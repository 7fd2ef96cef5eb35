"""Modules that take the place of torch's in a model that is trained to be quantized."""
