"""Zero-shot classification and retrieval with intervals, and the gate that says whether a model got worse."""
