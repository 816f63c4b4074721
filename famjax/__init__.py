"""famjax: language models with a working memory (TransformerFAM, arXiv 2404.09173), in JAX.

    import famjax

    model = famjax.load("runs/fam")
    famjax.score(model, ["Once upon a time"])
    famjax.generate(model, "Once upon", max_tokens=20)

Importing this package imports nothing else: these functions load jax when they are first used.
"""

__version__ = "0.1.0"
__all__ = ["generate", "load", "score"]

TYPE_CHECKING = False  # typing's, which would be an import
if TYPE_CHECKING:
    from famjax.infer.api import generate, load, score


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from famjax.infer import api

    return getattr(api, name)
