"""What the loader's benchmarks are made of: a corpus, and the two loaders on it."""
