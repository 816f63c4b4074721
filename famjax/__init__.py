"""famjax: language models with a working memory (TransformerFAM, arXiv 2404.09173), in JAX.

Importing this package imports nothing heavy; jax is loaded by the modules that compute.
"""

__version__ = "0.1.0"
