"""The start of a script that loads each output folder in a Python that cannot import svitc.

The rest of the script, indented by four, gets ``model``, the input ``x``, the ``expected`` logits and ``results``.
"""

EACH_FOLDER_ALONE = """
import importlib.util, json, pathlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("svitc", "compiler"):
            raise ImportError(name + " is not here")

sys.meta_path.insert(0, Blocker())
sys.modules.pop("svitc", None)
import torch
from spikingjelly.activation_based import functional

torch.set_num_threads(1)
results = {}
for folder in map(pathlib.Path, sys.argv[1:]):
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.load()
    x, expected = (torch.load(folder / name, weights_only=True) for name in ("x.pt", "y.pt"))
"""
