# tokend in an image with nothing else in it: no shell, no package manager, no root.
#
#   docker buildx build --platform linux/amd64,linux/arm64 --build-arg VERSION=v1.2.3 \
#     --build-arg COMMIT="$(git rev-parse HEAD)" --build-arg DATE="$(git log -1 --format=%cI)" -t tokend:v1.2.3 .
#
# To start, it needs TOKEND_TLS_CERT_FILE and TOKEND_TLS_KEY_FILE, or TOKEND_PLAINTEXT=true if something
# in front of it encrypts.

ARG GO_VERSION=1.26

# Cross-compiling is faster than emulating the target platform.
FROM --platform=$BUILDPLATFORM golang:${GO_VERSION} AS modules
WORKDIR /src
# A layer of its own, so that a change to the source does not download the modules again.
COPY go.mod go.sum ./
RUN go mod download && go mod verify

FROM modules AS build
COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
# For `tokend version`: .git is not copied, so the Go command does not know them.
ARG COMMIT=
ARG DATE=
# No cgo, because the final stage has no libc. grpcnotrace leaves out grpc-go's tracing, which is not
# used here. With -trimpath the binary does not depend on the folder it was built in.
RUN --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=${TARGETOS} GOARCH=${TARGETARCH} \
    go build -tags grpcnotrace -trimpath -buildvcs=false \
      -ldflags "-s -w -X main.version=${VERSION} -X main.commit=${COMMIT} -X main.date=${DATE}" -o /out/tokend ./cmd/tokend

FROM scratch
ARG VERSION=dev
ARG COMMIT=
ARG DATE=
LABEL org.opencontainers.image.title="tokend" \
      org.opencontainers.image.description="An org's Atlas ephemeral user token over gRPC and REST" \
      org.opencontainers.image.source="https://github.com/ForstaLabs/ephemeral-token-service" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.created="${DATE}"
# Root certificates, for TLS to Atlas.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/tokend /tokend
# The default addresses are on loopback, out of reach for callers, probes and Prometheus. The admin port
# serves health and metrics in plaintext. They contain no secret, but do not publish the port.
ENV TOKEND_GRPC_ADDR=:9090 \
    TOKEND_HTTP_ADDR=:8080 \
    TOKEND_ADMIN_ADDR=:9091
# By number, because there is no /etc/passwd, and runAsNonRoot in Kubernetes needs a number.
USER 65532:65532
EXPOSE 9090 8080 9091
# It asks the admin listener: if you turn that off with TOKEND_ADMIN_ADDR, turn this off too.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/tokend", "healthcheck"]
ENTRYPOINT ["/tokend"]
CMD ["serve"]
