# Everything of ours that runs on Python, one target each:
#
#   listener   holds the socket that NGINX connects to: the base image and one file
#   tools      makes keys, certificates and secrets for a first start
#   api        answers requests
#   worker     works on batch jobs: the same layers, another command
#
# Models are not in it: they are mounted at /models.
# No default: compose.yaml is the one place that names versions of images.
ARG PYTHON_IMAGE

# NOTE: Compose replaces a container whose image has changed, and all that depend on it. NGINX depends on the next two, and
# is to outlive upgrades. So nothing of the application is in them, and no time of day, which a RUN or a WORKDIR leaves in
# its layer: with SOURCE_DATE_EPOCH=0 among the build arguments they come out identical even from another checkout or an
# empty cache.

FROM ${PYTHON_IMAGE} AS listener-parts
COPY --chmod=0644 services/inference_api/listener.py /parts/
RUN install --directory --owner 10001 --group 10001 /parts/run/tiercel && find /parts -exec touch --date=@0 {} +

FROM ${PYTHON_IMAGE} AS listener
LABEL org.opencontainers.image.title="Tiercel listener" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=listener-parts /parts /
USER 10001:10001
CMD ["python", "/listener.py", "hold", "/run/tiercel/api.sock"]


FROM ${PYTHON_IMAGE} AS tools-parts
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /build
COPY pyproject.toml uv.lock ./
# New volumes take owner and mode from the folders that they are mounted over.
RUN --mount=type=cache,target=/root/.cache/uv \
    uv export --quiet --locked --only-group setup --output-file setup.txt \
    && UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy uv pip install --require-hashes --target /parts/app/lib --requirement setup.txt \
    && rm /parts/app/lib/.lock \
    && install --directory --owner 10001 --group 10001 --mode 0700 /parts/var/lib/tiercel/ca /parts/var/lib/tiercel/tls \
        /parts/var/lib/tiercel/secrets \
    && install --directory --owner 10001 --group 10001 /parts/var/lib/tiercel/grafana /parts/var/lib/tiercel/redis
COPY --chmod=0644 docker/first_start.py /parts/app/
RUN find /parts -exec touch --no-dereference --date=@0 {} +

FROM ${PYTHON_IMAGE} AS tools
LABEL org.opencontainers.image.title="Tiercel tools" org.opencontainers.image.licenses="Apache-2.0"
ENV PYTHONPATH=/app/lib PYTHONDONTWRITEBYTECODE=1
COPY --from=tools-parts /parts /
USER 10001:10001
CMD ["python", "/app/first_start.py", "--ca", "/var/lib/tiercel/ca", "--tls", "/var/lib/tiercel/tls", \
     "--secrets", "/var/lib/tiercel/secrets", "--redis", "/var/lib/tiercel/redis", "--grafana", "/var/lib/tiercel/grafana"]


FROM ${PYTHON_IMAGE} AS builder
# For meinheld, which is published as source only. CFLAGS must stay unset: pyproject.toml sets them for it.
# hadolint ignore=DL3008  # Debian keeps no older versions that one could name, and the compiler stays in this stage
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir uv==0.13.9
# PERF: bytecode is made here, and never compared with its source again.
ENV UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 PYC_INVALIDATION_MODE=UNCHECKED_HASH \
    UV_PROJECT_ENVIRONMENT=/app/venv ORT_DISABLE_TELEMETRY=1
WORKDIR /build
COPY pyproject.toml uv.lock ./
# What no service imports goes: a second copy of onnxruntime, for programs in C (35 MB), its tools for making models, the
# tests of packages, type stubs, and a decoder for AVIF. Should a release come to need one of these, this fails.
# hadolint ignore=DL3003  # the folder has Python's version in its name
RUN --mount=type=cache,target=/root/.cache/uv \
    uv sync --locked --no-dev --no-install-project \
    && cd /app/venv && rm .lock && cd lib/python3*/site-packages \
    && rm -r onnxruntime/capi/libonnxruntime.so.* onnxruntime/transformers onnxruntime/quantization onnxruntime/tools \
    && rm PIL/_avif.*.so pillow.libs/libavif-*.so.* \
    && find . -depth \( -type d -name tests -o -name '*.pyi' \) -exec rm -r {} + \
    && /app/venv/bin/python -c 'import onnxruntime, PIL.Image'


# A change of code comes down to this, and to one layer of half a megabyte.
FROM builder AS project
COPY LICENSE NOTICE README.md ./
COPY services services
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --no-deps --python /app/venv --target /app/services . && rm /app/services/.lock


FROM ${PYTHON_IMAGE} AS api
LABEL org.opencontainers.image.title="Tiercel" org.opencontainers.image.licenses="Apache-2.0"
# pip is hidden by this but not gone: the layer below keeps its 10 MB.
# PERF: Python's images leave out the bytecode of the standard library; each start would compile it again, for 0.5 s.
# New volumes take owner and mode from the folders that they are mounted over.
# hadolint ignore=DL3003  # the folder has Python's version in its name
RUN pip uninstall --yes --quiet --root-user-action ignore wheel setuptools pip \
    && cd /usr/local/lib/python3* && rm -r ensurepip \
    && python -m compileall -q -f -j 0 --invalidation-mode unchecked-hash . \
    && groupadd --gid 10001 tiercel \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tiercel \
    && install --directory --owner 10001 --group 10001 /run/tiercel \
    && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/tiercel/jobs
ENV PATH=/app/venv/bin:/app/services/bin:$PATH PYTHONPATH=/app/services PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1 \
    TIERCEL_MODELS_DIR=/models
COPY --from=builder /app/venv /app/venv
COPY --from=project /app/services /app/services
USER 10001:10001
WORKDIR /app
CMD ["python", "-m", "gunicorn", "-c", "python:inference_api.gunicorn_conf"]


FROM api AS worker
CMD ["python", "-m", "batch_worker.main"]
