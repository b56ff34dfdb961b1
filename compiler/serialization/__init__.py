"""Programs as safetensors files that contain data but no code, and programs from such files, which are not trusted.

Imports: ``ir`` and what is below it.

Start with ``writer.py``. ``layer_schema.py`` has the complete table of layers.
"""
