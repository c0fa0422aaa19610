# syntax=docker/dockerfile:1
# docker build --target cpu -t metaspec .        docker run -p 8000:8000 metaspec
# docker build --target gpu -t metaspec:gpu .    docker run --gpus all -p 8000:8000 metaspec:gpu
# Own models: mount a repository and name it, -v /models:/models ... --repository /models

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
WORKDIR /app
COPY pyproject.toml README.md LICENSE Makefile ./
COPY client client
COPY export export
COPY server server
COPY simulation simulation
COPY training training
RUN useradd --system --create-home metaspec

FROM base AS cpu
RUN python -m venv .venv-serve && .venv-serve/bin/pip install --quiet ".[server]"
ENV PATH=/app/.venv-serve/bin:$PATH METASPEC_HOST=0.0.0.0
USER metaspec
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["metaspec-serve"]

FROM base AS gpu
RUN python -m venv .venv-serve && .venv-serve/bin/pip install --quiet ".[gpu]"
ENV PATH=/app/.venv-serve/bin:$PATH METASPEC_HOST=0.0.0.0
USER metaspec
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["metaspec-serve"]
