# tokend in an image with nothing else in it: no shell, no package manager, no root.
#
#   docker buildx build --platform linux/amd64,linux/arm64 --build-arg VERSION=v1.2.3 \
#     --build-arg COMMIT="$(git rev-parse HEAD)" --build-arg DATE="$(git log -1 --format=%cI)" -t tokend:v1.2.3 .
#
# It does not start before it is told how callers reach it safely: TOKEND_TLS_CERT_FILE and TOKEND_TLS_KEY_FILE, or
# TOKEND_PLAINTEXT=true where something in front of it encrypts.

ARG GO_VERSION=1.26

# Compiling on the builder's own platform and for the target's is faster than emulating the target.
FROM --platform=$BUILDPLATFORM golang:${GO_VERSION} AS modules
WORKDIR /src
# Alone in its layer, so that a change to the source does not download them again.
COPY go.mod go.sum ./
RUN go mod download && go mod verify

FROM modules AS build
COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
# What `tokend version` says; .git is not copied, so the Go command cannot know.
ARG COMMIT=
ARG DATE=
# No cgo: the final stage has no libc. grpcnotrace: grpc-go's tracing, which nothing here shows, links html/template and with
# it doubles the binary. -trimpath: the bytes do not depend on the folder they were built in.
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
# Atlas is called over TLS only, so the binary needs somebody's root certificates.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/tokend /tokend
# The loopback defaults would be out of reach from outside the container, for callers as for probes and Prometheus. The admin port
# has health and metrics, in plaintext, and nothing that is secret: do not publish it all the same.
ENV TOKEND_GRPC_ADDR=:9090 \
    TOKEND_HTTP_ADDR=:8080 \
    TOKEND_ADMIN_ADDR=:9091
# By number, since there is no /etc/passwd and Kubernetes' runAsNonRoot only trusts numbers.
USER 65532:65532
EXPOSE 9090 8080 9091
# It asks the admin listener: where TOKEND_ADMIN_ADDR turns that off, turn this off as well.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/tokend", "healthcheck"]
ENTRYPOINT ["/tokend"]
CMD ["serve"]
