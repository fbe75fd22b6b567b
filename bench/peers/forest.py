"""The peers of the forest evaluator: LightGBM from Python, and lleaves.

Needs numpy and lightgbm; lleaves is optional and needs `llvmlite==0.44.*` (later ones dropped what
it calls). Answers one line a line, so that `bench/forest.rs` can time it and itself in turn:

    model TEXT ROWS COLUMNS   load a model and row-major f32 rows -> the systems that can run it
    time SYSTEM MS            predict for so long                 -> each call's milliseconds
    scores SYSTEM             predict once                        -> raw scores
    quit
"""

import os
import sys
import time

# One thread, as a request has; before any library reads it.
os.environ["OMP_NUM_THREADS"] = "1"

import lightgbm
import numpy

try:
    import lleaves
except ImportError as error:
    print(f"lleaves is left out: {error}", file=sys.stderr)
    lleaves = None

# lleaves compiles a model of 300 trees in minutes and larger ones in tens of them.
LLEAVES_BYTES_MAX = 3_000_000


def load(text_path, rows_path, columns):
    """Systems by name, each a function without arguments that gives raw scores."""
    rows = numpy.fromfile(rows_path, dtype=numpy.float32).reshape(-1, int(columns))
    rows = rows.astype(numpy.float64)
    booster = lightgbm.Booster(model_file=text_path)
    systems = {"lightgbm:python": lambda: booster.predict(rows, raw_score=True, num_threads=1)}
    if lleaves is not None and os.path.getsize(text_path) <= LLEAVES_BYTES_MAX:
        # lleaves wants the line that only LightGBM's Python package writes.
        own_path = text_path + ".lleaves.txt"
        with open(text_path) as text, open(own_path, "w") as own:
            own.write(text.read().rstrip("\n") + "\n\npandas_categorical:null\n")
        compiled = lleaves.Model(model_file=own_path)
        # Compiling takes minutes for the larger models; the code does not depend on the run.
        compiled.compile(cache=text_path + ".lleaves.o", raw_score=True)
        systems["lleaves"] = lambda: compiled.predict(rows, n_jobs=1)
    return systems


def times(predict, milliseconds):
    """Durations of calls, after one that warms up, for about so long in all; at least two."""
    predict()
    found = []
    start = time.perf_counter()
    while len(found) < 2 or (time.perf_counter() - start) * 1e3 < milliseconds:
        before = time.perf_counter()
        predict()
        found.append((time.perf_counter() - before) * 1e3)
    return found


def main():
    systems = {}
    for line in sys.stdin:
        command, *rest = line.split()
        if command == "quit":
            return
        if command == "model":
            systems = load(*rest)
            answer = systems
        elif command == "time":
            answer = (f"{value:.6f}" for value in times(systems[rest[0]], float(rest[1])))
        elif command == "scores":
            answer = (repr(float(score)) for score in systems[rest[0]]())
        else:
            sys.exit(f"unknown command {command!r}: model, time, scores or quit")
        print(*answer, flush=True)


if __name__ == "__main__":
    main()
