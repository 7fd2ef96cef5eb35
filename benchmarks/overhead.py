"""Times calls of ops on 16 elements, where all is overhead, against torch ops of the same arity.

    python benchmarks/overhead.py [--json FILE] [--repeats 9] [--threads 1] [--quick]

Results are checked before anything is timed. See README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from _timing import Candidate, measure, parser, print_table, start, write
from torch import Tensor

from amct_pytorch.ops import arq_fake_quantize, fake_quantize, ulq, ulq_scale

QMIN, QMAX = -128, 127
HEADER = ("op", "way", "us", "torch us", "more")


@dataclass(frozen=True)
class Overhead:
    """Microseconds of a call, and of one of a torch op that takes and makes as many tensors."""

    op: str
    way: str
    us: float
    torch_us: float


Op = Callable[..., Tensor]  # of tensors, the first of which is x


def contests() -> dict[str, tuple[Op, tuple[Tensor, ...], Op, tuple[Tensor, ...]]]:
    """Our op and its tensors, torch's and its tensors; of the tensors, floats are learnt."""
    x, scale = torch.linspace(-2, 2, 16), torch.tensor(0.1)
    offset = torch.tensor(0, dtype=torch.int32)
    high, low = torch.tensor(1.0), torch.tensor(-1.0)
    mean, var = torch.zeros(4), torch.ones(4)

    def torch_fake_quantize(x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, scale, offset, QMIN, QMAX)

    def batch_norm(*t: Tensor) -> Tensor:  # five tensors in, three out
        return torch.native_batch_norm(*t, mean, var, True, 0.1, 1e-5)[0]

    return {
        "fake_quantize": (
            lambda x: fake_quantize(x, scale, offset),
            (x,),
            torch_fake_quantize,
            (x,),
        ),
        "ulq_scale": (ulq_scale, (x, scale), torch.mul, (x, scale)),
        "arq_fake_quantize": (arq_fake_quantize, (x,), torch.neg, (x,)),
        "ulq": (
            lambda *t: ulq(*t)[0],
            (x, high, low),
            batch_norm,
            (x.reshape(4, 4), torch.ones(4), torch.zeros(4)),
        ),
    }


def ways(op: Op, tensors: tuple[Tensor, ...]) -> dict[str, Candidate]:
    """Calls without a gradient, with one to come, and with its backward."""
    learnt = [t.clone().requires_grad_() for t in tensors]
    grad = torch.ones_like(op(*tensors))
    return {
        "constant": lambda: op(*tensors),
        "requires_grad": lambda: op(*learnt),
        "both ways": lambda: torch.autograd.grad(op(*learnt), learnt, grad),
    }


def check() -> None:
    """On the grid nothing changes, and the gradient passes."""
    x = (torch.arange(-8, 8) * 0.5).requires_grad_()
    scale, offset = torch.tensor(0.5), torch.tensor(0, dtype=torch.int32)
    for y in (
        fake_quantize(x, scale, offset),
        ulq_scale(x, scale),
        arq_fake_quantize(x, 5),
        ulq(x, torch.tensor(3.5), torch.tensor(-4.0), 4)[0],
    ):
        (grad,) = torch.autograd.grad(y.sum(), x)
        if not (torch.equal(y, x) and torch.equal(grad, torch.ones(16))):
            raise SystemExit("an op changes what lies on its grid")


def overheads(repeats: int) -> Iterator[Overhead]:
    for name, (op, tensors, other, others) in contests().items():
        theirs = ways(other, others)
        for way, function in ways(op, tensors).items():
            pair = measure({"ours": function, "torch": theirs[way]}, repeats)
            yield Overhead(name, way, pair["ours"].ms * 1e3, pair["torch"].ms * 1e3)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--quick", action="store_true", help="one round, to see that it runs")
    arguments.set_defaults(threads=1)
    options = arguments.parse_args()
    facts = start(options)
    check()
    found = list(overheads(1 if options.quick else options.repeats))
    rows = [
        (o.op, o.way, f"{o.us:.1f}", f"{o.torch_us:.1f}", f"{o.us - o.torch_us:+.1f}")
        for o in found
    ]
    print_table(HEADER, rows)
    if options.json:
        write(options.json, facts, [vars(o) for o in found])


if __name__ == "__main__":
    main()
