# The control plane: one image for `slipway migrate`, `api`, `worker` and `gateway`; the command says which.
#
#   docker build -t slipway .                            control plane (the default target)
#   docker build -t slipway-local --target local .       the same with PostgreSQL, Go and a sandbox: `serve`, `worker --local`
#
# Base images go by tag; pin them by digest where builds have to be repeatable. All libraries are locked by hash.
ARG PYTHON_VERSION=3.13

# ---- the wheel
FROM python:${PYTHON_VERSION}-slim AS wheel
WORKDIR /src
COPY requirements/build.txt requirements/build.txt
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY app app
COPY builder builder
COPY examples examples
COPY migrations migrations
RUN pip wheel --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir /dist .

# ---- what it needs, in an environment of its own
FROM python:${PYTHON_VERSION}-slim AS libraries
RUN python -m venv /opt/slipway
COPY requirements/runtime.txt /tmp/
RUN /opt/slipway/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /tmp/runtime.txt

FROM libraries AS libraries-local
COPY requirements/local.txt /tmp/
RUN /opt/slipway/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /tmp/local.txt
COPY --from=wheel /dist /dist
RUN /opt/slipway/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps /dist/*.whl

FROM libraries AS libraries-control
COPY --from=wheel /dist /dist
RUN /opt/slipway/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps /dist/*.whl

# ---- what runs
FROM python:${PYTHON_VERSION}-slim AS base
ENV PATH=/opt/slipway/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    SLIPWAY_HOME=/var/lib/slipway \
    SLIPWAY_HOST=0.0.0.0 \
    SLIPWAY_GATEWAY_HOST=0.0.0.0 \
    SLIPWAY_LOG_FORMAT=json
RUN groupadd --gid 10001 slipway \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/slipway --shell /usr/sbin/nologin slipway \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/slipway
USER 10001:10001
WORKDIR /var/lib/slipway
VOLUME /var/lib/slipway
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
ENTRYPOINT ["slipway"]
CMD ["api"]
# The API's. The other commands have checks of their own, see docker-compose.yml.
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s --retries=3 \
    CMD ["python", "-m", "app.check", "http://127.0.0.1:8080/readyz"]

# Its sandboxes need user namespaces inside the container: see `worker-local` in docker-compose.yml.
FROM base AS local
USER root
RUN apt-get update \
    && apt-get install -y --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001
COPY --from=libraries-local /opt/slipway /opt/slipway

FROM base AS control
COPY --from=libraries-control /opt/slipway /opt/slipway
