"""Times the ops against torch's own, compiled and eager, and against the limit of the memory.

    python benchmarks/ops.py [--json FILE] [--repeats 9] [--threads 2] [--scale 1.0]

Results are checked bit for bit before they are timed. See README.md beside this file.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import _determinism
import _fake_quantize
import _search
import _training
from _case import HEADER, Row, Run, cells, remarks
from _timing import fill_free_memory, kept_pages, parser, print_table, start, write

Group = Callable[[Run], Iterator[Row]]

# "fresh" comes first, while there are no pages that are kept.
GROUPS: dict[str, list[Group]] = {
    "fresh": [_fake_quantize.fresh, *_search.FRESH],
    "fake_quantize": _fake_quantize.GROUPS,
    "training": _training.GROUPS,
    "search": _search.GROUPS,
    "determinism": _determinism.GROUPS,
}

# For the largest tensors and what eager makes of them on the way; of this, what each group finds
# filled with NaN.
FREE_BYTES, FILLED_BYTES = 2**32, 2**30


def rows_of(part: str, run: Run) -> list[Row]:
    if part == "fresh":
        return [row for group in GROUPS[part] for row in group(run)]
    rows: list[Row] = []
    with kept_pages():
        fill_free_memory(run.size(FREE_BYTES))
        for group in GROUPS[part]:
            fill_free_memory(run.size(FILLED_BYTES))
            rows += group(run)
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--scale", type=float, default=1.0, help="factor of the sizes")
    arguments.add_argument("--only", choices=GROUPS, nargs="+", help="these parts of the table")
    options = arguments.parse_args()
    facts = start(options)
    run = Run(options.scale, options.repeats)
    warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")  # says it is deprecated
    rows: list[Row] = []
    for part in (part for part in GROUPS if part in (options.only or GROUPS)):
        found = rows_of(part, run)
        print_table(HEADER, [cells(row) for row in found])
        print(flush=True)
        rows += found
    print("Ratios are other/ours. What must be reached and is not:")
    print("\n".join(remarks(rows) or ["nothing"]))
    if options.json:
        write(options.json, facts, [row.document() for row in rows])


if __name__ == "__main__":
    main()
