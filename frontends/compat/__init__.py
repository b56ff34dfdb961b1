"""Compatibility with old model files: stand-ins for packages and arguments that do not exist any more.

Old code for spiking transformers imports ``spikingjelly.clock_driven``, timm and plotting tools. Within
``import_hooks.compatible`` such code is imported and run unchanged. This room imports ``support`` and ``errors`` only.
Start reading with ``import_hooks``; ``stand_ins`` has the modules, and ``shims`` the functions and classes in them.
"""
