"""From a trained model to a package that may be served: export, quantise, validate, benchmark, publish."""

import os

# Before any module here imports ONNX Runtime, which would otherwise report usage from then on.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
