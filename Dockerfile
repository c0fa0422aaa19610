# syntax=docker/dockerfile:1
# docker build --target cpu -t metaspec .
# docker run -p 8000:8000 --stop-timeout 45 --read-only --cap-drop ALL metaspec
#
# docker build --target gpu -t metaspec:gpu .
# docker run --gpus all -p 8000:8000 --stop-timeout 45 --read-only --cap-drop ALL metaspec:gpu
#
# Own models: mount a repository and name it, -v /models:/models:ro ... --repository /models
# --stop-timeout is longer than the shutdown (--shutdown-timeout 30, and 5 s for the last answers): Docker's own 10 s would end
# requests that have been accepted.

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
ENV METASPEC_HOST=0.0.0.0
WORKDIR /app
RUN useradd --uid 10001 --user-group --no-create-home metaspec
EXPOSE 8000 8001
# On the port, socket or certificate of the server's settings. While models are loaded, it is "starting".
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-m", "metaspec_server.ops.health"]
ENTRYPOINT ["metaspec-serve"]

FROM base AS wheels
COPY contract contract
COPY server server
RUN pip wheel --quiet --no-deps --wheel-dir wheels ./contract ./server

# The wheels are mounted, not copied: the models are in the image once.
FROM base AS cpu
RUN --mount=type=bind,source=requirements/serve.txt,target=/tmp/serve.txt pip install --quiet -r /tmp/serve.txt
RUN --mount=type=bind,from=wheels,source=/app/wheels,target=/tmp/wheels pip install --quiet --no-deps /tmp/wheels/*.whl
USER 10001:10001

FROM base AS gpu
RUN --mount=type=bind,source=requirements/serve-gpu.txt,target=/tmp/serve-gpu.txt pip install --quiet -r /tmp/serve-gpu.txt
RUN --mount=type=bind,from=wheels,source=/app/wheels,target=/tmp/wheels pip install --quiet --no-deps /tmp/wheels/*.whl
USER 10001:10001
