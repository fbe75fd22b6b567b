"""Runs ONNX graphs for tests/end_to_end/onnx.rs: JSON of inputs on stdin, JSON of vectors on stdout."""

import json
import sys

import numpy as np
import onnx
import onnxruntime

KINDS = {"history": np.int64, "item": np.int64, "codes": np.int64, "dense": np.float32}

for line in sys.stdin:
    job = json.loads(line)
    onnx.checker.check_model(onnx.load(job["model"]), full_check=True)
    session = onnxruntime.InferenceSession(job["model"])
    wanted = {node.name for node in session.get_inputs()}
    vectors = []
    for run in job["runs"]:
        # JSON has no NaN: null is absent.
        inputs = {
            name: np.array([np.nan if x is None else x for x in values], dtype=KINDS[name])
            for name, values in run.items()
            if name in wanted
        }
        vectors.append(session.run(["vector"], inputs)[0].tolist())
    print(json.dumps(vectors), flush=True)
