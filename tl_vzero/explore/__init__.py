"""A live page on which a person types a sentence and sees the report's panels: local, offline, on any loaded model."""

from tl_vzero.explore.app import explorer_app
from tl_vzero.explore.asked import Asked
from tl_vzero.explore.explorer import Explorer
from tl_vzero.explore.serve import bound_socket, hosts_of, serve

__all__ = ["Asked", "Explorer", "bound_socket", "explorer_app", "hosts_of", "serve"]
