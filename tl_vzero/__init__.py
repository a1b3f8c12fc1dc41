"""tl_vzero: which tokens does a Transformer layer really mix into a token?

The public names are those of __init__.pyi, loaded at first use, so that importing the package does not import torch.
"""

from lazy_loader import attach_stub

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
