"""Measurements of time and memory beside the plain models and their peers: `kaconv bench`."""

from typing import TYPE_CHECKING

from kaconv.utils.lazy import lazy_names

if TYPE_CHECKING:
    from kaconv.bench.benchmark import BenchmarkRow, describe_machine, read_benchmark, run_benchmark
    from kaconv.bench.input_speed import run_input_benchmark

__all__ = ["BenchmarkRow", "describe_machine", "read_benchmark", "run_benchmark", "run_input_benchmark"]

_MODULES = dict.fromkeys(("BenchmarkRow", "describe_machine", "read_benchmark", "run_benchmark"), "benchmark")
_MODULES |= {"run_input_benchmark": "input_speed"}
__getattr__ = lazy_names(__name__, _MODULES)
