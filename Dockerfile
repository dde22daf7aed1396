# Fourfold for CPUs: every role and the embedded models. `docker build --tag fourfold .`; how to run it: docs/operate.md.
ARG PYTHON=3.13-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE THIRD_PARTY_NOTICES.md ./
COPY src ./src
# The versions that the tests ran with, also in the environment that pip builds the wheel in.
ENV PIP_CONSTRAINT=/src/constraints.txt PIP_BUILD_CONSTRAINT=/src/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/fourfold && /opt/fourfold/bin/python -m pip install --no-cache-dir .

FROM python:${PYTHON}
LABEL org.opencontainers.image.title="fourfold" \
      org.opencontainers.image.description="An open image-upscaling network: gateway, orchestrators and workers" \
      org.opencontainers.image.licenses="Apache-2.0"
# A number, so that "is it root?" can be answered without reading the image's /etc/passwd.
RUN groupadd --gid 10001 fourfold \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin fourfold \
 && install --directory --owner=10001 --group=10001 --mode=0750 /data
COPY --from=build /opt/fourfold /opt/fourfold
# Inside a container every address is one's own; what others reach is decided by what is published. State goes to /data
# alone, scratch to /tmp, so the rest may be read-only.
ENV PATH=/opt/fourfold/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    FOURFOLD_DATA_DIR=/data \
    FOURFOLD_GATEWAY__HOST=0.0.0.0 \
    FOURFOLD_ORCHESTRATOR__HOST=0.0.0.0 \
    FOURFOLD_WORKER__HOST=0.0.0.0
WORKDIR /data
USER 10001:10001
VOLUME /data
EXPOSE 9935 8935 8000
# Of a gateway, as `up` has one; for another role: --health-cmd "fourfold health worker".
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["fourfold", "health", "gateway"]
# No shell between the engine and the role: SIGTERM arrives and drains it.
ENTRYPOINT ["fourfold"]
CMD ["up"]
