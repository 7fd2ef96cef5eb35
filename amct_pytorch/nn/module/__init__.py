"""See `amct_pytorch.nn.module.quantization`."""
