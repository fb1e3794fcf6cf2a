"""Measurements of the whole product: `make bench`, or `python -m benchmarks.throughput --help`.

They start `modelmora serve` themselves, on free ports and in a temporary folder, with the real
all-MiniLM-L6-v2. What they found is in docs/benchmarks.md.
"""
