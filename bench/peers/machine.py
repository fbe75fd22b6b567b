"""The `machine` column of the records."""

import os
import platform
from pathlib import Path


def machine() -> str:
    """Architecture, CPU model and logical cores, such as "x86_64 AMD EPYC x2"."""
    models = (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
              if line.startswith("model name"))
    return f"{platform.machine()} {next(models, 'unknown')} x{os.cpu_count()}"


if __name__ == "__main__":
    print(machine())
