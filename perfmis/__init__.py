"""perfmis: comparative motivation profiles of alignment-faking models, as one workflow DAG."""

__version__ = "0.1.0"
