"""Comparative benchmarks: cases, rivals, a runner that writes JSON, a report that reads it."""
