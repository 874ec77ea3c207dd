"""judgelit trains generative judges: language models that compare two answers and reason to a verdict."""

from importlib.metadata import version

from judgelit.errors import UserError

__version__ = version("judgelit")
__all__ = ["UserError", "__version__"]
