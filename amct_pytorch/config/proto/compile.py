"""Writes the descriptor sets (.desc) of the .proto files in this folder; run it after a change.

Needs grpcio-tools. The package itself reads the .desc files only.
"""

from __future__ import annotations

from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-not-found,import-untyped,unused-ignore]

FOLDER = Path(__file__).parent
STEMS = (
    "calibration_config_pytorch",
    "quant_calibration_config_pytorch",
    "retrain_config_pytorch",
    "scale_offset_record_pytorch",
)


def compile_protos(folder: Path) -> None:
    """Writes `<stem>.desc` into `folder`, with imported files included."""
    for stem in STEMS:
        arguments = [
            f"-I{FOLDER}",
            "--include_imports",
            f"--descriptor_set_out={folder / stem}.desc",
            f"{stem}.proto",
        ]
        if protoc.main(["protoc", *arguments]) != 0:
            raise SystemExit(f"{stem}.proto does not compile")


if __name__ == "__main__":
    compile_protos(FOLDER)
