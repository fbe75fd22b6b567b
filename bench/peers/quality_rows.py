"""Rows of bench/record/quality.csv."""

import csv
import datetime
import hashlib
from pathlib import Path

from machine import machine


def append(record: Path, run: str, work: str, rows: list[tuple[str, str, str, str]]) -> None:
    """Appends rows (system, setting, metric, value) of one run, which is named after the text `run`."""
    run = hashlib.sha256(run.encode()).hexdigest()[:8]
    today = datetime.date.today().isoformat()
    with record.open("a", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        for system, setting, metric, value in rows:
            unit = "nats" if metric == "logloss" else "share"
            out.writerow([run, work, system, setting, metric, value, unit, today, machine()])
