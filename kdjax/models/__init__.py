"""Networks and baselines, all as functions of arrays: windows in, errors out."""
