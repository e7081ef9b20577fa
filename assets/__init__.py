"""Bundled worlds and textures; read them with importlib.resources.files("farworld.assets")."""
