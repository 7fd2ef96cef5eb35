"""Facts of a model that no test has to build: one layer for each row of the capability table."""

from amct_pytorch.graph import Layer, ModelFacts


def _layer(name: str, kind: str, inputs: int = 4, groups: int = 1, bias: bool = True) -> Layer:
    return Layer(name, kind, None, bias, groups, inputs, out_channels=8 if inputs else 0)


_LAYERS = [
    _layer("conv1", "Conv2d", inputs=3),
    _layer("conv2", "Conv2d"),
    _layer("depthwise", "Conv2d", groups=4),
    _layer("conv1d", "Conv1d"),
    _layer("conv3d", "Conv3d"),
    _layer("up1d", "ConvTranspose1d"),
    _layer("up", "ConvTranspose2d"),
    _layer("up_odd", "ConvTranspose2d", inputs=5),
    _layer("fc", "Linear"),
    _layer("fc_plain", "Linear", bias=False),
    _layer("fc_odd", "Linear", inputs=5),
    _layer("pool", "AvgPool2d", inputs=0, bias=False),
    Layer("unused", "Conv2d", "the forward pass never runs it", True, 1, 4, 8),
]
FACTS = ModelFacts(
    layers={layer.name: layer for layer in _LAYERS},
    modules={
        "": "Net",
        "relu": "ReLU",
        "alias": "Conv2d",  # a module of the list under a second name
        **{layer.name: layer.kind for layer in _LAYERS},
    },
)
NAMES = sorted(name for name in FACTS.layers if name != "unused")
