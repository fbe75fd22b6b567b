# syntax=docker/dockerfile:1
# Two images of one program:
#   docker build -t shortlist .                          serve: answers requests (the default, small)
#   docker build -t shortlist-full --target full .       full: also runs the daily pipeline
# Both run as a user without rights, read bundles from /models, log events under /data, and listen on
# port 8080:
#   docker run -p 8080:8080 -v "$PWD/models:/models" -v shortlist-data:/data shortlist

# ---- what both builds need: a C compiler comes with the image
FROM rust:1.95.0-slim-bookworm AS build-base
# The image holds this toolchain; rust-toolchain.toml would also fetch rustfmt and clippy.
ENV RUSTUP_TOOLCHAIN=1.95.0
WORKDIR /src

# ---- the whole program: LightGBM needs a C++ compiler, libclang and CMake >= 3.28 (Debian 12 has 3.25)
FROM build-base AS build-full
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make libclang-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/tools \
    && /opt/tools/bin/pip install --no-cache-dir 'cmake>=3.28'
ENV CMAKE=/opt/tools/bin/cmake
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,id=shortlist-full,target=/src/target \
    cargo build --release --locked \
    && install -D --strip target/release/shortlist /out/shortlist

# ---- the online half alone
FROM build-base AS build-serve
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,id=shortlist-serve,target=/src/target \
    cargo build --release --locked --no-default-features --features serve \
    && install -D --strip target/release/shortlist /out/shortlist

# ---- what both images run on
FROM debian:12.11-slim AS runtime
RUN useradd --system --uid 10001 --home-dir /app --shell /usr/sbin/nologin shortlist \
    && mkdir -p /app /models /data \
    && chown shortlist:shortlist /app /models /data
WORKDIR /app
COPY config config
# A container's loopback interface is reached by nobody.
ENV SHORTLIST__SERVER__BIND=0.0.0.0
ENV SHORTLIST__REGISTRY__URL=/models
ENV SHORTLIST__EVENTS__DIR=/data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["shortlist", "health"]
ENTRYPOINT ["shortlist"]
CMD ["serve"]

# ---- full: LightGBM's threads need the OpenMP runtime
FROM runtime AS full
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 libstdc++6 \
    && rm -rf /var/lib/apt/lists/*
COPY sql sql
COPY --from=build-full /out/shortlist /usr/local/bin/shortlist
USER shortlist

# ---- serve: the last stage is what `docker build .` makes
FROM runtime AS serve
COPY --from=build-serve /out/shortlist /usr/local/bin/shortlist
USER shortlist
