# syntax=docker/dockerfile:1
# docker build --target cpu -t metaspec .        docker run -p 8000:8000 metaspec
# docker build --target gpu -t metaspec:gpu .    docker run --gpus all -p 8000:8000 metaspec:gpu
# Own models: mount a repository and name it, -v /models:/models ... --repository /models

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
ENV METASPEC_HOST=0.0.0.0
WORKDIR /app
RUN useradd --system --create-home metaspec
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["metaspec-serve"]

FROM base AS wheels
COPY contract contract
COPY server server
RUN pip wheel --quiet --no-deps --wheel-dir wheels ./contract ./server

FROM base AS cpu
COPY requirements/serve.txt .
RUN pip install --quiet -r serve.txt
COPY --from=wheels /app/wheels wheels
RUN pip install --quiet --no-deps wheels/*.whl
USER metaspec

FROM base AS gpu
COPY requirements/serve-gpu.txt .
RUN pip install --quiet -r serve-gpu.txt
COPY --from=wheels /app/wheels wheels
RUN pip install --quiet --no-deps wheels/*.whl
USER metaspec
