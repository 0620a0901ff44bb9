"""Programs around the server: today the benchmark, `jserve-bench`."""
