"""What each group of features adds on real impressions: KuaiRand-Pure, is_click on 30 April 2022.

    python3 bench/peers/kuairand.py --binary BINARY --data DATA --work WORK --record bench/record/quality.csv [--seeds 3]

Called by tools/bench-quality.sh. The sections of config/kuairand/features.toml are added one after the other, then the
towers' similarity; each set trains towers and ranker and is judged by `shortlist pipeline evaluate`: AUC over all impressions, GAUC by user.
"""

import argparse
import json
import os
import re
import subprocess
from pathlib import Path

import quality_rows

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config/kuairand.toml"
FEATURES = ROOT / "config/kuairand/features.toml"

# Not among the shipped features: it costs GAUC (docs/decisions/0019).
TOWERS = """
[[feature]]
name = "similarity"
scope = "cross"
op = "dot"
doc = "Cosine of the user and item vectors of the towers, which learnt from the sequences."
"""


def groups() -> dict[str, str]:
    """The text of each group of sections, in the order of the file, and the towers."""
    found: dict[str, str] = {}
    for part in re.split(r"(?m)^# --- ", FEATURES.read_text())[1:]:
        head, text = part.split("\n", 1)
        name = head.split(":")[0]
        found[name] = found.get(name, "") + text
    return found | {"towers": TOWERS}


def judged(binary: Path, data: Path, work: Path, features: Path, seed: int) -> dict[str, float]:
    environment = os.environ | {
        "SHORTLIST__OFFLINE__DATA_DIR": str(data),
        "SHORTLIST__OFFLINE__WORK_DIR": str(work),
        "SHORTLIST__OFFLINE__FEATURES": str(features),
        "SHORTLIST__REGISTRY__URL": str(work / "models"),
        "SHORTLIST__OFFLINE__RANKER__SEED": str(seed),
        "SHORTLIST__TOWERS__SEED": str(seed),
    }
    command = [binary, "--config", CONFIG, "pipeline", "evaluate"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr[-4000:])
    ranker = json.loads((work / "evaluate/report.json").read_text())["ranker"]
    return {name: ranker[f"ranker/{name}"]["mean"] for name in ("auc", "gauc", "logloss")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows, text, name = [], "", ""
    for group, more in groups().items():
        text, name = text + more, f"{name} + {group}" if name else group
        features = args.work / "features.toml"
        features.write_text(text)
        for seed in range(1, args.seeds + 1):
            found = judged(args.binary.resolve(), args.data.resolve(), args.work.resolve(), features.resolve(), seed)
            rows += [(f"{name} seed={seed}", metric, value) for metric, value in found.items()]
            print(f"{name} seed={seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in found.items()), flush=True)
    written = [("ranker", setting, metric, f"{value:.4f}") for setting, metric, value in rows]
    quality_rows.append(args.record, json.dumps(rows), "kuairand", written)



if __name__ == "__main__":
    main()
