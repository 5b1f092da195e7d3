"""The trace as `brume simulate --replay` reads it: python benchmarks/data/to_csv.py azure2017.csv.gz [REQUESTS]."""
import csv
import gzip
import sys
from pathlib import Path

import numpy as np


def main() -> None:
    data = np.load(Path(__file__).with_name("azure2017.npz"))
    count = int(sys.argv[2]) if len(sys.argv) > 2 else len(data["flavor"])
    arrivals = np.cumsum(data["arrival_periods"].astype(np.int64))[:count] * 300
    lifetimes = data["bounds_s"].mean(axis=1)[data["duration"][:count]]         # where a lifetime lies between two: the middle
    flavors = data["flavor"][:count]
    with gzip.open(sys.argv[1], "wt", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("arrival", "lifetime", "vcpus", "ram_mib"))
        rows.writerows(zip(arrivals.tolist(), lifetimes.tolist(), data["vcpus"][flavors].tolist(),
                           data["memory_mib"][flavors].tolist(), strict=True))


if __name__ == "__main__":
    main()
