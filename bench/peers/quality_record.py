"""Writes the quality figures of a run's report into the record: what the run's own bundle reached, and the baselines.

    python3 bench/peers/quality_record.py --work WORK --name retail --setting "texts seed=1" --record FILE

Called by tools/bench-quality.sh after each run of the day.
"""

import argparse
import json
from pathlib import Path

import quality_rows

# Of the report: table, then which figures.
WANTED = {
    "towers": ("recall@20", "recall@100", "recall@500"),
    "ranker": ("auc", "gauc", "ndcg@10", "logloss"),
    "served": ("recall@20", "coverage"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--setting", required=True)
    parser.add_argument("--record", type=Path, required=True)
    args = parser.parse_args()
    text = (args.work / "evaluate/report.json").read_text()
    report = json.loads(text)
    rows = []
    for table, figures in WANTED.items():
        for name, estimate in report[table].items():
            system, figure = name.rsplit("/", 1)
            if figure not in figures:
                continue
            # `towers/new-to-user` is a system and what it is asked for.
            system, _, scope = system.partition("/")
            setting = " ".join(part for part in (scope, args.setting) if part)
            value = f"{estimate['mean']:.4f}"
            rows.append((f"shortlist {system}", setting, figure, value))
            if system in ("towers", "ranker", "served", "ranked"):
                interval = f"[{estimate['lo']:.4f}, {estimate['hi']:.4f}]"
                print(f"{args.name} {system} {setting} {figure} {value} {interval}", flush=True)
    for name, gain in report["differences"].items():
        system, _, figure = name.rpartition("/")
        if system in ("served - repeats", "ranked - repeats"):
            print(f"{args.name} {system} {args.setting} {figure} {gain['mean']:.4f} [{gain['lo']:.4f}, {gain['hi']:.4f}]", flush=True)
            rows += [(f"shortlist {system}", f"{args.setting} {end}".rstrip(), figure, f"{gain[key]:.4f}")
                     for key, end in (("mean", ""), ("lo", "low end"), ("hi", "high end"))]
    quality_rows.append(args.record, text, args.name, rows)


if __name__ == "__main__":
    main()
