"""Where automatic calibration writes."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

from ..export.graphs import model_paths

FAMILY = "accuracy_based_auto_calibration"  # what names of files begin with


@dataclass(frozen=True)
class OutputPaths:
    """Where each file of a run goes: absolute, since an evaluator may change the directory."""

    models: dict[str, str]  # by form
    record_file: str
    ranking: str
    history: str
    final_config: str
    quant_info: str
    report_json: str
    report_html: str
    journal: str

    @classmethod
    def of(cls, save_dir: str, record_file: str) -> OutputPaths:
        """The paths for models `folder/prefix...` and a record file."""
        folder, prefix = os.path.split(save_dir)
        folder = os.path.abspath(folder)
        start = f"{prefix}_" if prefix else ""
        return cls(
            models=model_paths(os.path.join(folder, prefix)),
            record_file=os.path.abspath(record_file),
            ranking=os.path.join(folder, f"{FAMILY}_ranking_information.json"),
            history=os.path.abspath(os.path.join("amct_log", f"{FAMILY}_record.json")),
            final_config=os.path.join(folder, f"{FAMILY}_final_config.json"),
            quant_info=os.path.join(folder, f"{start}quant.json"),
            report_json=os.path.join(folder, f"{FAMILY}_report.json"),
            report_html=os.path.join(folder, f"{FAMILY}_report.html"),
            journal=os.path.join(folder, f"{start}auto_calibration_journal.jsonl"),
        )

    def all(self) -> dict[str, str]:
        """Every path, by what it is."""
        paths = asdict(self)
        models = paths.pop("models")
        return {**{f"{form}_model": path for form, path in models.items()}, **paths}
