"""One module per table; every table is written as Parquet (with its fingerprint) and as CSV."""
