"""A bare Flask server: gunicorn --worker-class gthread --workers 2 --threads 4 flask_app:app"""

from typing import Any

import numpy as np
from flask import Flask, Response, jsonify, request
from inference import PHOTOS, TABULAR, classify, open_session, read_labels

# Gunicorn imports this module in each worker, after the fork.
app = Flask(__name__)
tabular, photos, labels = open_session(TABULAR), open_session(PHOTOS), read_labels()


@app.get("/v2/health/ready")
def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post(f"/v2/models/{TABULAR}/infer")
def infer() -> Response:
    tensor = request.get_json()["inputs"][0]
    features = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
    classes, probabilities = tabular.run(["class_id", "probabilities"], {tensor["name"]: features})
    outputs = [_output("class_id", "INT64", classes), _output("probabilities", "FP32", probabilities)]
    return jsonify(model_name=TABULAR, model_version="1", outputs=outputs)


@app.post(f"/v1/models/{PHOTOS}:predict")
def predict() -> Response:
    return jsonify(predictions=classify(photos, labels, request.get_data()))


def _output(name: str, datatype: str, array: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": array.shape, "data": array.ravel().tolist()}
