"""Networks and detectors, one file per paper."""
