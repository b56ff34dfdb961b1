"""Checkpoints: reading a file safely, recognizing its model, building the model and loading the weights into it.

This room imports ``frontends/compat``, ``frontends/published``, ``ir``, ``support`` and ``errors``. Start reading
with ``load.load_model``, which goes through the steps in order: ``reader``, ``recognize_published`` and
``recognize_spikingjelly``, ``model_factory``, ``weights``. ``save`` writes files that need no recognition.
"""
