# One static binary on an empty base, built with Debian's own Rust:
#   docker build -t bms2mqtt .
#   docker run -d --restart unless-stopped --device /dev/ttyUSB0 --group-add dialout -v bms2mqtt:/var/lib/bms2mqtt \
#     -e BMS2MQTT_PORT=/dev/ttyUSB0 -e BMS2MQTT_MQTT_URL=mqtt://192.168.1.10:1883 bms2mqtt
ARG BASE=debian:trixie-slim

FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates cargo gcc libc6-dev rustc \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
# Dependencies first: they change seldom, and this layer is kept.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src benches && echo 'fn main() {}' | tee src/main.rs > benches/figures.rs && touch src/lib.rs README.md \
 && RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --locked --target "$(rustc -vV | sed -n 's/^host: //p')"
COPY src src
RUN touch src/main.rs src/lib.rs \
 && RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --locked --target "$(rustc -vV | sed -n 's/^host: //p')" \
 && install -D target/*/release/bms2mqtt /root-of-image/usr/bin/bms2mqtt \
 && install -D /etc/ssl/certs/ca-certificates.crt /root-of-image/etc/ssl/certs/ca-certificates.crt \
 && mkdir -p /root-of-image/var/lib/bms2mqtt

FROM scratch
COPY --from=build /root-of-image /
ENV BMS2MQTT_STATE_DIR=/var/lib/bms2mqtt
VOLUME /var/lib/bms2mqtt
HEALTHCHECK --interval=60s --timeout=5s --start-period=60s CMD ["/usr/bin/bms2mqtt", "health"]
ENTRYPOINT ["/usr/bin/bms2mqtt"]
