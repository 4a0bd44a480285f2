# One static binary on an empty base, built with Debian's own Rust, for every architecture that Debian has.
#
#   docker build -t bms2mqtt .                              a container that runs as nobody in particular
#   docker build -t bms2mqtt-app --build-arg RUN_AS=0:0 .   the same for Home Assistant, whose apps own their /data as root
ARG BASE=debian:trixie-slim

FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates cargo gcc libc6-dev rustc \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
# With the C library inside; the target is named, so that nothing of it concerns what only the build runs.
ENV RUSTFLAGS="-C target-feature=+crt-static"
# Dependencies first: they change seldom, and this layer is kept.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src benches packaging \
 && echo 'fn main() {}' | tee src/main.rs packaging/manual.rs > benches/figures.rs \
 && touch src/lib.rs README.md \
 && cargo build --release --locked --bin bms2mqtt --target "$(rustc -vV | sed -n 's/^host: //p')"
COPY LICENSE-APACHE LICENSE-MIT ./
COPY packaging/notices packaging/
COPY src src
RUN touch src/main.rs src/lib.rs \
 && cargo build --release --locked --bin bms2mqtt --target "$(rustc -vV | sed -n 's/^host: //p')" \
 && install -D target/*/release/bms2mqtt /image/usr/bin/bms2mqtt \
 && install -D /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
 && install -D -m 644 -t /image/usr/share/doc/bms2mqtt LICENSE-APACHE LICENSE-MIT \
 && packaging/notices --static > /image/usr/share/doc/bms2mqtt/THIRD-PARTY
# Whoever it runs as, it is the same program, and compiled once.
ARG RUN_AS=65532:20
RUN install -d -o "${RUN_AS%:*}" -g "${RUN_AS#*:}" /image/var/lib/bms2mqtt

FROM scratch
COPY --from=build /image /
ENV BMS2MQTT_STATE_DIR=/var/lib/bms2mqtt
VOLUME /var/lib/bms2mqtt
# Group 20 is Debian's dialout, which owns serial ports; where it is another: docker run --group-add.
ARG RUN_AS=65532:20
USER ${RUN_AS}
# Whether it works at all, not whether every battery answers: Home Assistant and others restart what is unhealthy.
HEALTHCHECK --interval=60s --timeout=5s --start-period=60s CMD ["/usr/bin/bms2mqtt", "health", "--alive"]
ENTRYPOINT ["/usr/bin/bms2mqtt"]
ARG VERSION=dev
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="bms2mqtt" \
      org.opencontainers.image.description="Battery packs with JBD smart BMS boards, cell by cell, in Home Assistant by MQTT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="https://github.com/bms2mqtt/bms2mqtt" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      io.hass.type="addon" \
      io.hass.version="${VERSION}"
