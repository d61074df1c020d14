"""The passes that a recipe may name, one file each: an artifact in, an artifact out.

To add one: a file with a `Pass` whose fields are its options, a line here, a test, and a row in models/README.md.
"""

from model_tools.passes.dynamic_int8 import DynamicInt8
from model_tools.passes.fold_preprocessing import FoldPreprocessing
from model_tools.passes.fp16_weights import Fp16Weights
from model_tools.passes.optimise import Optimise
from model_tools.passes.prune import Prune
from model_tools.passes.prune_channels import PruneChannels
from model_tools.passes.static_int8 import StaticInt8

AnyPass = Optimise | FoldPreprocessing | Prune | PruneChannels | Fp16Weights | DynamicInt8 | StaticInt8
