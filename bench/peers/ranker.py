"""Python's LightGBM beside ours on the same rows: the difference of their validation AUC.

    python bench/peers/ranker.py --work WORK --name demo --record bench/record/quality.csv

Called by tools/bench-quality.sh after a run of the day with `offline.ranker.keep_rows = true`, which leaves the rows in
WORK/ranker. Parameters are those that ranker.txt names. Requirements: lightgbm 4.6.0 numpy pandas pyarrow.
"""

import argparse
import re
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pandas as pd

import quality_rows

# What decides the trees.
TRAINING = (
    "objective", "metric", "eval_at", "learning_rate", "num_leaves", "max_depth", "max_bin", "min_data_in_leaf",
    "min_sum_hessian_in_leaf", "feature_fraction", "bagging_fraction", "bagging_freq", "lambda_l1", "lambda_l2",
    "scale_pos_weight", "seed", "num_threads",
)  # fmt: skip


def parameters(model: str) -> dict[str, str]:
    block = model.split("\nparameters:\n")[1].split("\nend of parameters")[0]
    pairs = dict(re.findall(r"(?m)^\[([^:]+): (.*)\]$", block))
    return {name: pairs[name] for name in TRAINING if pairs.get(name)} | {"verbosity": "-1"}


def auc(label: np.ndarray, score: np.ndarray, weight: np.ndarray) -> float:
    """Weighted area under the curve, ties counted half."""
    frame = pd.DataFrame({"score": score, "yes": label * weight, "no": (1 - label) * weight})
    frame = frame.groupby("score").sum()
    below = frame["no"].cumsum() - frame["no"]
    return float((frame["yes"] * (below + frame["no"] / 2)).sum() / (frame["yes"].sum() * frame["no"].sum()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--patience", type=int, default=50)
    parser.add_argument("--record", type=Path, required=True)
    args = parser.parse_args()
    path = args.work / "ranker/ranker.txt"
    text = path.read_text()
    train, valid = (pd.read_parquet(args.work / f"ranker/{name}.parquet") for name in ("training", "validation"))
    names = [name for name in train.columns if name not in ("label", "weight", "request")]
    infos = re.search(r"(?m)^feature_infos=(.*)$", text).group(1).split(" ")
    # LightGBM writes categories as a list of codes, numbers as a range.
    categories = [name for name, info in zip(names, infos) if not info.startswith("[") and info != "none"]
    given = parameters(text)
    matrix = [part[names].to_numpy() for part in (train, valid)]
    groups = [part.request.value_counts(sort=False).to_numpy() if given["objective"] == "lambdarank" else None for part in (train, valid)]
    data = lgb.Dataset(matrix[0], train.label, weight=train.weight, group=groups[0], feature_name=names, categorical_feature=categories, params=given)
    check = lgb.Dataset(matrix[1], valid.label, weight=valid.weight, group=groups[1], reference=data)
    theirs = lgb.train(given, data, args.rounds, valid_sets=[check], callbacks=[lgb.early_stopping(args.patience, verbose=False)])
    ours = lgb.Booster(model_file=str(path))
    rows = []
    for system, model, trees in (
        ("shortlist ranker", ours, ours.num_trees()),
        ("python lightgbm", theirs, theirs.best_iteration),
    ):
        value = auc(valid.label.to_numpy(), model.predict(matrix[1], raw_score=True), valid.weight.to_numpy())
        rows.append((system, f"validation rows, {trees} trees", "auc", value))
        print(f"{args.name} {system}: AUC {value:.5f} on {len(valid)} validation rows, {trees} trees", flush=True)
    rows.append(("shortlist - python lightgbm", "validation rows", "auc difference", rows[0][3] - rows[1][3]))
    written = [(system, setting, metric, f"{value:.5f}") for system, setting, metric, value in rows]
    quality_rows.append(args.record, text, args.name, written)



if __name__ == "__main__":
    main()
