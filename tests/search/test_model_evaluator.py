"""ModelEvaluator: raw `.bin` files in, a metric out, and whether a new metric is good enough."""

import math
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from amct_pytorch.search import bin_files
from amct_pytorch.search.bin_files import DATA_TYPES
from amct_pytorch.search.model_evaluator import ModelEvaluator

NAN, INF = float("nan"), float("inf")


class Spy(nn.Module):
    """Keeps what it is given; returns what `function` makes of it, or else the first input."""

    def __init__(self, function=lambda *inputs: inputs[0]):
        super().__init__()
        self.calls = []
        self.function = function
        self.eval()

    def forward(self, *inputs):
        self.calls.append(inputs)
        return self.function(*inputs)

    @property
    def firsts(self) -> list[float]:
        """The first element of the first input of each call."""
        return [inputs[0].flatten()[0].item() for inputs in self.calls]


class Holder(nn.Module):
    """Has a parameter or buffer on a device, which says where inputs go."""

    def __init__(self, *, buffer=None, parameter=None):
        super().__init__()
        self.eval()
        if buffer is not None:
            self.register_buffer("place", buffer)
        if parameter is not None:
            self.weight = nn.Parameter(parameter)

    def forward(self, x):
        self.seen = x
        return x


def write(folder, batches, dtype="float32"):
    """One file per batch; `batches` is a list, or a dict from file name to batch."""
    folder.mkdir(exist_ok=True)
    if not isinstance(batches, dict):
        batches = {f"{index}.bin": batch for index, batch in enumerate(batches)}
    for name, batch in batches.items():
        np.asarray(batch, dtype).tofile(folder / name)
    return str(folder)


def full(folder, values, shape=(1, 2)):
    """Batches that are each full of one value."""
    return write(folder, [np.full(shape, value) for value in values])


@pytest.fixture
def two(tmp_path):
    """Two batches [[1, 1]] and [[2, 2]]."""
    return full(tmp_path / "x", [1, 2])


def metric_of(*outputs):
    """What `evaluate` returns for one batch of these outputs."""
    return (tuple(torch.as_tensor(output) for output in outputs),)


# ---- what the model is given ----


def test_files_come_in_lexicographic_order(tmp_path):
    names = {f"b{value}.bin": [[value, 0]] for value in (1, 2, 10, 9)}
    folder = write(tmp_path, names)
    model = Spy()
    ModelEvaluator(folder, "x:1,2", "float32").calibration(model)
    assert model.firsts == [1, 10, 2, 9]


def test_other_names_and_folders_are_left_out(two, tmp_path):
    (tmp_path / "x" / "notes.txt").write_text("text")
    (tmp_path / "x" / "0.bin.gz").write_text("text")
    (tmp_path / "x" / "folder.bin").mkdir()
    model = Spy()
    ModelEvaluator(two, "x:1,2", "float32").calibration(model)
    assert model.firsts == [1, 2]


def test_inputs_of_a_batch_are_fed_together_in_the_order_of_the_shapes(tmp_path):
    image = write(tmp_path / "image", [np.full((1, 3, 2, 2), v) for v in (1, 2)])
    size = write(tmp_path / "a_size", [[[10, 11]], [[20, 21]]], "int64")
    model = Spy()
    shapes = "image:1,3,2,2;a_size:1,2"
    ModelEvaluator(f"{image};{size}", shapes, "float32;int64").calibration(model)
    assert [[tuple(x.shape) for x in inputs] for inputs in model.calls] == [
        [(1, 3, 2, 2), (1, 2)]
    ] * 2
    assert model.firsts == [1, 2]
    assert [inputs[1].tolist() for inputs in model.calls] == [[[10, 11]], [[20, 21]]]


def test_a_name_may_hold_colons(two):
    model = Spy()
    ModelEvaluator(two, "net/x:0:1,2", "float32").calibration(model)
    assert model.calls[0][0].shape == (1, 2)


def test_spaces_around_types_names_and_dims_are_left_out(tmp_path):
    folders = f"{full(tmp_path / 'a', [1])};{full(tmp_path / 'b', [2])}"
    model = Spy()
    ModelEvaluator(folders, "a: 1, 2; b:2,1", "float32; float32").calibration(model)
    assert [tuple(x.shape) for x in model.calls[0]] == [(1, 2), (2, 1)]


@pytest.mark.parametrize("name", DATA_TYPES)
def test_every_data_type_is_read(tmp_path, name):
    values = [[1, 0, 1]] if name == "bool" else [[1, 0, 100]]
    model = Spy()
    ModelEvaluator(write(tmp_path, [values], name), "x:1,3", name).calibration(model)
    (got,) = model.calls[0]
    assert got.dtype == getattr(torch, name)
    assert got.tolist() == values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("int8", -128),
        ("uint8", 255),
        ("uint16", 65535),
        ("uint32", 2**32 - 1),
        ("int64", -(2**63)),
        ("uint64", 2**64 - 1),
        ("float16", 65504.0),
        ("float64", 1e300),
    ],
)
def test_extreme_values_are_read(tmp_path, name, value):
    model = Spy()
    ModelEvaluator(write(tmp_path, [[value]], name), "x:1", name).calibration(model)
    assert model.calls[0][0].tolist() == [value]


def test_a_byte_other_than_0_is_true(tmp_path):
    model = Spy()
    ModelEvaluator(write(tmp_path, [[0, 1, 2, 255]], "uint8"), "x:4", "bool").calibration(model)
    assert model.calls[0][0].view(torch.uint8).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("kind", ["buffer", "parameter"])
def test_inputs_go_to_the_device_of_the_model(two, kind):
    model = Holder(**{kind: torch.zeros(1, device="meta")})
    ModelEvaluator(two, "x:1,2", "float32").calibration(model)
    assert model.seen.device.type == "meta"


def test_without_parameters_inputs_stay_on_the_cpu(two):
    model = Holder()
    ModelEvaluator(two, "x:1,2", "float32").calibration(model)
    assert model.seen.device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_the_gpu_has_its_metric_on_the_cpu(two):
    model = nn.Linear(2, 3).eval().cuda()
    ((first,), _) = ModelEvaluator(two, "x:1,2", "float32").evaluate(model)
    assert first.device.type == "cpu"


def test_gradients_are_off_while_the_model_runs_and_not_beyond(two):
    enabled = []
    model = Spy(lambda x: enabled.append(torch.is_grad_enabled()) or x)
    evaluator = ModelEvaluator(two, "x:1,2", "float32")
    evaluator.calibration(model)
    evaluator.evaluate(model)
    assert enabled == [False] * 4
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_stays_and_is_told_of(two, training, caplog):
    model = Spy().train(training)
    ModelEvaluator(two, "x:1,2", "float32").evaluate(model)
    assert model.training is training
    assert bool(caplog.messages) is training


# ---- how many batches ----


@pytest.mark.parametrize(
    ("constructor", "argument", "expected"),
    [(None, None, 3), (2, None, 2), (None, 1, 1), (2, 3, 3), (3, 1, 1)],
)
@pytest.mark.parametrize("method", ["calibration", "evaluate"])
def test_the_argument_comes_before_the_constructor(
    tmp_path, method, constructor, argument, expected
):
    keyword = {"calibration": "batch_num", "evaluate": "iterations"}[method]
    folder = full(tmp_path / "x", [1, 2, 3])
    evaluator = ModelEvaluator(folder, "x:1,2", "float32", **{keyword: constructor})
    model = Spy()
    getattr(evaluator, method)(model, argument)
    assert model.firsts == [1, 2, 3][:expected]


def test_each_count_is_for_its_own_method(two):
    evaluator = ModelEvaluator(two, "x:1,2", "float32", batch_num=1)
    assert len(evaluator.evaluate(Spy())) == 2


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("argument", ["batch_num", "iterations"])
def test_counts_are_positive(two, argument, value):
    with pytest.raises(ValueError, match=f"{argument}: expected an int > 0, got {value}"):
        ModelEvaluator(two, "x:1,2", "float32", **{argument: value})
    method = "calibration" if argument == "batch_num" else "evaluate"
    with pytest.raises(ValueError, match=f"{argument}: expected an int > 0, got {value}"):
        getattr(ModelEvaluator(two, "x:1,2", "float32"), method)(Spy(), value)


@pytest.mark.parametrize("value", [True, 1.0, "1", np.int64(1)])
@pytest.mark.parametrize("argument", ["batch_num", "iterations"])
def test_counts_are_ints(two, argument, value):
    with pytest.raises(TypeError, match=f"{argument}: expected an int, got"):
        ModelEvaluator(two, "x:1,2", "float32", **{argument: value})
    method = "calibration" if argument == "batch_num" else "evaluate"
    with pytest.raises(TypeError, match=f"{argument}: expected an int, got"):
        getattr(ModelEvaluator(two, "x:1,2", "float32"), method)(Spy(), value)


def test_too_few_files_for_the_constructor(two):
    with pytest.raises(RuntimeError) as raised:
        ModelEvaluator(two, "x:1,2", "float32", iterations=3)
    assert str(raised.value) == f"iterations: expected at least 3 .bin files in {two!r}, found 2"


def test_too_few_files_for_a_call_run_nothing(two):
    model = Spy()
    with pytest.raises(RuntimeError, match="batch_num: expected at least 3 .bin files in"):
        ModelEvaluator(two, "x:1,2", "float32").calibration(model, 3)
    assert not model.calls


def test_the_folder_with_too_few_files_is_named(tmp_path, two):
    second = full(tmp_path / "second", [1])
    with pytest.raises(RuntimeError, match=f"{second}'?, found 1"):
        ModelEvaluator(f"{two};{second}", "x:1,2;y:1,2", "float32;float32", batch_num=2)


def test_different_counts_need_a_number(tmp_path, two):
    folders = f"{two};{full(tmp_path / 'second', [1])}"
    with pytest.raises(RuntimeError, match=f"found 2 in '{two}', 1 in .*or set batch_num"):
        ModelEvaluator(folders, "x:1,2;y:1,2", "float32;float32", iterations=1)
    model = Spy()
    ModelEvaluator(
        folders, "x:1,2;y:1,2", "float32;float32", batch_num=1, iterations=1
    ).calibration(model)
    assert len(model.calls) == 1


# ---- what is read, and when ----


@pytest.fixture
def read_files(monkeypatch):
    """The names of the files that are read, as they are read."""
    names = []
    fromfile = np.fromfile

    def spy(path, *arguments):
        names.append(str(path).rsplit("/", 1)[-1])
        return fromfile(path, *arguments)

    monkeypatch.setattr(bin_files.np, "fromfile", spy)
    return names


def test_the_constructor_reads_nothing(two, read_files):
    ModelEvaluator(two, "x:1,2", "float32")
    assert read_files == []


def test_only_the_batches_needed_are_read_one_by_one(tmp_path, read_files):
    evaluator = ModelEvaluator(full(tmp_path / "x", [1, 2, 3]), "x:1,2", "float32")
    model = Spy(lambda x: x * len(read_files))
    ((first,), (second,)) = evaluator.evaluate(model, 2)
    assert read_files == ["0.bin", "1.bin"]
    assert (first[0, 0].item(), second[0, 0].item()) == (1 * 1, 2 * 2)


def test_calls_do_not_depend_on_each_other(two):
    evaluator = ModelEvaluator(two, "x:1,2", "float32")
    first = evaluator.evaluate(Spy(lambda x: x.add_(5)))  # changes its input
    evaluator.calibration(Spy(), 1)
    second = evaluator.evaluate(Spy(lambda x: x.add_(5)))
    assert [x.tolist() for (x,) in first] == [[[6, 6]], [[7, 7]]]
    assert evaluator.metric_eval(first, second) == (True, 0.0)


def test_a_file_that_was_changed_is_refused_when_it_is_read(two, tmp_path):
    evaluator = ModelEvaluator(two, "x:1,2", "float32")
    (tmp_path / "x" / "1.bin").write_bytes(b"\0" * 9)
    with pytest.raises(ValueError, match="1.bin: expected 8 bytes .*, got 9"):
        evaluator.evaluate(Spy())


# ---- mistakes in the arguments ----


@pytest.mark.parametrize("argument", [0, 1, 2])
@pytest.mark.parametrize("value", [None, 1, b"x", ["x"]])
def test_the_three_are_str(two, argument, value):
    arguments = [two, "x:1,2", "float32"]
    arguments[argument] = value
    name = ["data_dir", "input_shape", "data_types"][argument]
    with pytest.raises(TypeError, match=f"{name}: expected a str, got {type(value).__name__}"):
        ModelEvaluator(*arguments)


@pytest.mark.parametrize("text", ["", "x", "1,2", ":1,2", "x:", " :1,2", "x:1,2;"])
def test_name_and_dims_are_needed(two, text):
    with pytest.raises(ValueError, match='input_shape: expected "name:n,c,h,w"'):
        ModelEvaluator(two, text, "float32")


@pytest.mark.parametrize("dim", ["0", "-1", "1.5", "n", "", "²", "1_0"])
def test_dims_are_positive_integers(two, dim):
    message = f"input_shape: x: expected positive integers, got {dim!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelEvaluator(two, f"x:1,{dim}", "float32")


@pytest.mark.parametrize(
    ("folders", "types", "message"),
    [
        (1, 2, "data_dir: expected .* for each of the 2 inputs of input_shape, got 1"),
        (3, 2, "data_dir: expected .* for each of the 2 inputs of input_shape, got 3"),
        (2, 1, "data_types: expected .* for each of the 2 inputs of input_shape, got 1"),
    ],
)
def test_every_input_has_a_folder_and_a_type(two, folders, types, message):
    with pytest.raises(ValueError, match=message):
        ModelEvaluator(";".join([two] * folders), "x:1,2;y:1,2", ";".join(["float32"] * types))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("flaot32", '; did you mean "float32"?'),
        ("FLOAT32", '; did you mean "float32"?'),
        ("complex", ""),
        ("", ""),
    ],
)
def test_unknown_data_types(two, name, hint):
    with pytest.raises(TypeError) as raised:
        ModelEvaluator(two, "x:1,2", name)
    allowed = ", ".join(DATA_TYPES)
    assert str(raised.value) == f"data_types: expected one of {allowed}, got {name!r}{hint}"


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_missing_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="data_dir: No such file or directory; expected"):
        ModelEvaluator(name, "x:1,2", "float32")


def test_a_file_for_a_folder(two):
    with pytest.raises(NotADirectoryError, match="data_dir: Not a directory; .*0.bin"):
        ModelEvaluator(f"{two}/0.bin", "x:1,2", "float32")


def test_a_folder_without_files(tmp_path):
    with pytest.raises(
        RuntimeError, match="data_dir: expected at least 1 .bin files in .* found 0"
    ):
        ModelEvaluator(str(tmp_path), "x:1,2", "float32")


@pytest.mark.parametrize("size", [0, 7, 9, 16])
def test_a_file_of_another_size(two, tmp_path, size):
    path = tmp_path / "x" / "1.bin"
    path.write_bytes(b"\0" * size)
    message = f"{path}: expected 8 bytes (x: float32 1,2), got {size}"
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelEvaluator(two, "x:1,2", "float32")


@pytest.mark.parametrize("value", [-1, -1e-9, NAN, INF])
def test_tolerance_is_finite_and_not_negative(two, value):
    with pytest.raises(ValueError, match="tolerance: expected a finite number >= 0, got"):
        ModelEvaluator(two, "x:1,2", "float32", tolerance=value)


@pytest.mark.parametrize("value", [True, "0.1", None])
def test_tolerance_is_a_number(two, value):
    with pytest.raises(TypeError, match="tolerance: expected a number, got"):
        ModelEvaluator(two, "x:1,2", "float32", tolerance=value)


# ---- outputs as the metric ----


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x, [1]),
        (lambda x: (x, x + 1), [1, 2]),
        (lambda x: [x, (x + 1, [x + 2])], [1, 2, 3]),
        (lambda x: {"logits": x, "aux": x + 1}, [1, 2]),
        (lambda x: OrderedDict(out=x, rest={"aux": (x + 1, x + 2)}), [1, 2, 3]),
        (lambda x: ("text", None, x, 3.5), [1]),
    ],
    ids=["tensor", "tuple", "nested", "dict", "nested dict", "other things"],
)
def test_the_metric_is_every_tensor_of_every_batch(two, function, expected):
    metric = ModelEvaluator(two, "x:1,2", "float32").evaluate(Spy(function))
    assert [[x[0, 0].item() for x in batch] for batch in metric] == [
        expected,
        [value + 1 for value in expected],
    ]
    assert type(metric) is tuple
    assert {type(batch) for batch in metric} == {tuple}


@pytest.mark.parametrize("output", [None, 1.0, (), {}, ["text"]])
def test_an_output_without_tensors(two, output):
    with pytest.raises(TypeError, match="model: expected an output that holds tensors, got"):
        ModelEvaluator(two, "x:1,2", "float32").evaluate(Spy(lambda x: output))


def test_the_metric_keeps_when_the_model_uses_its_memory_again(two):
    memory = torch.zeros(1, 2)
    metric = ModelEvaluator(two, "x:1,2", "float32").evaluate(Spy(memory.copy_))
    assert [x.tolist() for (x,) in metric] == [[[1, 1]], [[2, 2]]]


def test_the_metric_has_no_gradient(two):
    weight = nn.Parameter(torch.ones(1))
    metric = ModelEvaluator(two, "x:1,2", "float32").evaluate(Spy(lambda x: weight))
    assert not metric[0][0].requires_grad


def test_a_float16_model(tmp_path):
    folder = write(tmp_path / "x", [[[1, 2]], [[3, 4]]], "float16")
    model = nn.Linear(2, 1, bias=False).half().eval()
    nn.init.ones_(model.weight)
    evaluator = ModelEvaluator(folder, "x:1,2", "float16")
    metric = evaluator.evaluate(model)
    assert [(x.dtype, x.tolist()) for (x,) in metric] == [
        (torch.float16, [[3]]),
        (torch.float16, [[7]]),
    ]
    assert evaluator.metric_eval(metric, metric) == (True, 0.0)


# ---- the loss of outputs ----


@pytest.fixture
def judge(two):
    return lambda a, b, **options: ModelEvaluator(two, "x:1,2", "float32", **options).metric_eval(
        a, b
    )


@pytest.mark.parametrize(
    ("a", "b", "loss"),
    [
        ([1.0, 0.0], [1.0, 0.0], 0.0),
        ([1.0, 2.0], [2.0, 4.0], 0.0),
        ([1.0, 0.0], [0.0, 1.0], 0.5),
        ([3.0, 4.0], [-3.0, -4.0], 1.0),
        ([3.0, 4.0], [0.0, 0.0], 1.0),
        ([1, 2, 3, 4], [1, 2, 3, 5], 0.25),
        ([True, False], [True, True], 0.5),
    ],
)
def test_loss_of_one_output(judge, a, b, loss):
    assert judge(metric_of(a), metric_of(b)) == (loss <= 0.01, loss)


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn"])
def test_loss_of_floating_dtypes(judge, name):
    a, b = (torch.tensor(x).to(getattr(torch, name)) for x in ([1.0, 0.0], [1.0, 1.0]))
    expected = 0.5 - 0.5 * math.sqrt(0.5)
    assert judge(metric_of(a), metric_of(b))[1] == pytest.approx(expected, rel=1e-6)


def test_loss_of_complex_outputs(judge):
    a, b = torch.tensor([1 + 0j]), torch.tensor([0 + 1j])
    assert judge(metric_of(a), metric_of(b)) == (False, 0.5)


def test_float64_beyond_the_range_of_float32(judge):
    a = torch.tensor([1e300, 0.0], dtype=torch.float64)
    b = torch.tensor([0.0, 1e-300], dtype=torch.float64)
    assert judge(metric_of(a), metric_of(b)) == (False, 0.5)


def test_outputs_of_two_dtypes_are_compared_by_value(judge):
    a = torch.tensor([1.0, 2.0])
    assert judge(metric_of(a), metric_of(a.half())) == (True, 0.0)
    ids = torch.tensor([1, 2])
    assert judge(metric_of(ids), metric_of(torch.tensor([1, 3], dtype=torch.int32))) == (False, 0.5)


def test_loss_is_the_mean_over_batches_and_outputs(judge):
    same, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    original = ((same, same), (same, same))
    assert judge(original, ((same, same), (same, other)))[1] == 0.125


@pytest.mark.parametrize(("tolerance", "satisfied"), [(0.5, True), (0.49, False), (1, True)])
def test_a_loss_of_the_tolerance_satisfies(judge, tolerance, satisfied):
    a, b = metric_of([1.0, 0.0]), metric_of([0.0, 1.0])
    assert judge(a, b, tolerance=tolerance) == (satisfied, 0.5)


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("value", [[0.1, 0.2, 0.3], [INF, -INF, 1.0], [0.0], [3], [True], []])
def test_a_metric_beside_itself_has_no_loss(judge, value, count):
    metric = metric_of(value) * count
    satisfied, loss = judge(metric, metric, tolerance=0)
    assert (satisfied, loss) == (True, 0.0)
    assert (type(satisfied), type(loss)) == (bool, float)


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "float8_e5m2"])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([NAN, 1.0], [NAN, 1.0]),
        ([NAN, 1.0], [1.0, 1.0]),
        ([1.0, 1.0], [1.0, NAN]),
        ([0.0, 0.0], [0.0, NAN]),
        ([INF, 1.0], [INF, 2.0]),
    ],
)
def test_nan_never_satisfies(judge, name, a, b):
    good = torch.ones(2)
    a, b = (torch.tensor(x).to(getattr(torch, name)) for x in (a, b))
    satisfied, loss = judge(((good,), (a,)), ((good,), (b,)), tolerance=1e9)
    assert satisfied is False
    assert math.isnan(loss)


def test_nan_beside_itself_does_not_satisfy(judge):
    metric = metric_of([NAN, 1.0])
    assert judge(metric, metric)[0] is False


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (metric_of([1.0, 2.0]) * 2, "new_metric: expected 1 batches, got 2"),
        (
            metric_of([1.0, 2.0], [1.0]),
            "batch 0: expected outputs of shapes [(2,)], got [(2,), (1,)]",
        ),
        (metric_of([[1.0, 2.0]]), "batch 0: expected outputs of shapes [(2,)], got [(1, 2)]"),
    ],
    ids=["batches", "outputs", "shape"],
)
def test_metrics_of_different_shapes(judge, new, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        judge(metric_of([1.0, 2.0]), new)


def test_quantizing_costs_something_and_noise_costs_more(two):
    evaluator = ModelEvaluator(two, "x:1,2", "float32", tolerance=1e-3)
    weight = torch.tensor([1.0, 2.0, -3.0])
    original = evaluator.evaluate(Spy(lambda x: x.mean() * weight))
    near = evaluator.evaluate(Spy(lambda x: x.mean() * (weight + torch.tensor([0.01, 0.0, 0.0]))))
    far = evaluator.evaluate(Spy(lambda x: x.mean() * weight.flip(0)))
    (near_ok, near_loss), (far_ok, far_loss) = (
        evaluator.metric_eval(original, metric) for metric in (near, far)
    )
    assert (near_ok, far_ok) == (True, False)
    assert 0 < near_loss < far_loss < 1


# ---- labels ----


@pytest.fixture
def four(tmp_path):
    """Two batches of two samples; the classes with the largest values are 0, 1, 2 and 0."""
    batches = [[[9, 1, 0], [0, 9, 1]], [[0, 1, 9], [9, 0, 1]]]
    return write(tmp_path / "x", batches)


def labelled(four, labels, **options):
    return ModelEvaluator(four, "x:2,3", "float32", labels=labels, **options)


@pytest.mark.parametrize(
    "kind",
    [
        list,
        tuple,
        np.array,
        lambda x: np.array(x, np.uint8),
        lambda x: np.array(x)[::-1][::-1],
        torch.tensor,
        lambda x: torch.tensor(x, dtype=torch.int32),
        lambda x: list(torch.tensor(x)),
    ],
    ids=["list", "tuple", "ndarray", "uint8", "strides", "tensor", "int32", "list of tensors"],
)
def test_accuracy_with_labels(four, kind):
    accuracy = labelled(four, kind([0, 1, 2, 1])).evaluate(Spy())
    assert (type(accuracy), accuracy) == (float, 0.75)


@pytest.mark.parametrize("text", ["0\n1\n2\n1\n", "0\n 1 \n2\n1", "0\r\n1\r\n2\r\n1\r\n\r\n"])
@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "path"])
def test_labels_of_a_file(four, tmp_path, text, kind):
    path = tmp_path / "labels.txt"
    path.write_bytes(text.encode())
    assert labelled(four, kind(path)).evaluate(Spy()) == 0.75


@pytest.mark.parametrize("line", ["x", "1.0", "", "1 2"])
def test_a_line_that_is_no_integer(four, tmp_path, line):
    path = tmp_path / "labels.txt"
    path.write_text(f"0\n{line}\n2\n1\n")
    message = f"{path}:2: expected an integer, got {line!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        labelled(four, str(path))


def test_a_missing_file_of_labels(four, tmp_path):
    with pytest.raises(FileNotFoundError):
        labelled(four, str(tmp_path / "missing.txt"))


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([0.0, 1.0], TypeError, "labels: expected integers, got float64"),
        ([True, False], TypeError, "labels: expected integers, got bool"),
        (["a", "b"], TypeError, "labels: expected integers, got <U1"),
        (3, ValueError, "labels: expected one dimension, got the shape ()"),
        ([[0], [1]], ValueError, "labels: expected one dimension, got the shape (2, 1)"),
        ([0, -1], ValueError, "labels: expected classes >= 0, got -1"),
    ],
)
def test_labels_that_are_no_classes(four, labels, kind, message):
    with pytest.raises(kind) as raised:
        labelled(four, labels)
    assert str(raised.value) == message


@pytest.mark.parametrize("labels", [[], [0], [0, 1, 2]])
def test_fewer_labels_than_samples_are_told_of_at_the_first_batch(four, labels):
    model = Spy()
    message = f"labels: expected one for each of 4 samples, got {len(labels)}"
    with pytest.raises(ValueError, match=message):
        labelled(four, labels).evaluate(model)
    assert len(model.calls) == 1


def test_fewer_iterations_use_the_first_labels(four):
    assert labelled(four, [0, 1], iterations=1).evaluate(Spy()) == 1.0
    assert labelled(four, [0, 0, 2, 0]).evaluate(Spy(), 1) == 0.5


def test_a_change_of_the_labels_afterwards_changes_nothing(four):
    labels = np.array([0, 1, 2, 0])
    evaluator = labelled(four, labels)
    labels[:] = 9
    assert evaluator.evaluate(Spy()) == 1.0


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, :, None, None],
        lambda x: {"out": x, "aux": -x},
        lambda x: (None, [x], -x),
        lambda x: x.half(),
        lambda x: x.int(),
    ],
    ids=["1x1", "dict", "nested", "float16", "int"],
)
def test_the_first_tensor_has_the_scores(four, function):
    assert labelled(four, [0, 1, 2, 0]).evaluate(Spy(function)) == 1.0


@pytest.mark.parametrize(
    "function", [lambda x: x[:, 0], lambda x: x[:, :, None].expand(2, 3, 2), lambda x: x[:0]]
)
def test_other_scores_are_refused(four, function):
    message = "labels: expected a first output of (samples, classes)"
    with pytest.raises(ValueError, match=re.escape(message)):
        labelled(four, [0, 1, 2, 0]).evaluate(Spy(function))


def test_samples_with_nan_are_wrong(four):
    assert labelled(four, [0, 0, 0, 0]).evaluate(Spy(lambda x: x * NAN)) == 0.0


@pytest.mark.parametrize(
    ("original", "new", "satisfied", "loss"),
    [
        (0.75, 0.75, True, 0.0),
        (0.9, 0.89, True, 0.01),  # 0.010000000000000009 in floating point
        (0.9, 0.88, False, 0.02),
        (0.5, 0.75, True, -0.25),
    ],
)
def test_loss_of_accuracy(four, original, new, satisfied, loss):
    got = labelled(four, [0, 1, 2, 0]).metric_eval(original, new)
    assert got == (satisfied, loss)
    assert tuple(map(type, got)) == (bool, float)


def test_accuracy_beside_itself_satisfies_without_tolerance(four):
    evaluator = labelled(four, [0, 1, 2, 1], tolerance=0)
    accuracy = evaluator.evaluate(Spy())
    assert evaluator.metric_eval(accuracy, accuracy) == (True, 0.0)


def test_an_accuracy_of_nan_does_not_satisfy(four):
    satisfied, loss = labelled(four, [0, 1, 2, 0]).metric_eval(0.5, NAN)
    assert satisfied is False
    assert math.isnan(loss)


# ---- what a search that is resumed may rely on ----


def test_its_version_changes_with_its_data_and_not_with_its_tolerance(two, tmp_path):
    version = ModelEvaluator(two, "x:1,2", "float32").version
    assert ModelEvaluator(two, "x:1,2", "float32", tolerance=0.5).version == version
    assert ModelEvaluator(two, "x:1,2", "float32", iterations=1).version != version
    assert ModelEvaluator(two, "x:1,2", "float32", labels=[0, 1]).version != version
    full(tmp_path / "x", [1, 3])
    assert ModelEvaluator(two, "x:1,2", "float32").version != version
