#!/usr/bin/env python3
"""Writes kmeans.json: scikit-learn's k-means, level by level, on a synthetic set that the test makes again from the same generator: the judge
of router/retriever/tree_builder.cc. k groups, in each k subgroups, normal noise around them.

    /path/to/python tests/golden/kmeans.py tests/golden/kmeans.json
"""
import json
import sys

import numpy
from sklearn.cluster import KMeans

CASES = [{"fan_out": 16, "dimension": 32, "per_leaf": 8}, {"fan_out": 8, "dimension": 24, "per_leaf": 20}]
MASK = (1 << 64) - 1


class Generator:
    """SplitMix64; a normal number is the sum of 12 uniform ones minus 6. The test has the same lines in C++."""

    def __init__(self, seed):
        self.state = seed

    def unit(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return ((z ^ (z >> 31)) >> 11) / (1 << 53)

    def normal(self):
        return sum(self.unit() for _ in range(12)) - 6


def examples(fan_out, dimension, per_leaf):
    generator = Generator(7)
    rows = []
    for _ in range(fan_out):
        group = [4 * generator.normal() for _ in range(dimension)]
        for _ in range(fan_out):
            leaf = [value + 1.5 * generator.normal() for value in group]
            rows += [[value + 0.5 * generator.normal() for value in leaf] for _ in range(per_leaf)]
    return numpy.array(rows, dtype=numpy.float32)


def inertia_per_level(data, fan_out):
    top = KMeans(fan_out, n_init=10, random_state=0).fit(data)
    below = sum(KMeans(fan_out, n_init=10, random_state=0).fit(data[top.labels_ == i]).inertia_ for i in range(fan_out))
    return [float(top.inertia_), float(below)]


def main():
    for case in CASES:
        data = examples(**case)
        case["sum"] = float(data.astype(numpy.float64).sum())
        case["inertia"] = inertia_per_level(data, case["fan_out"])
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(CASES, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
