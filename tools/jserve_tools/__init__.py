"""Programs around the server: benchmark, simulator, bucket fits and training."""
