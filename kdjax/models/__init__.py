"""Networks and controls, all as functions of arrays: windows in, errors out."""
