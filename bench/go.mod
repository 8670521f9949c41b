// What people would use instead, measured beside this service. A module of its own, so that the service does not inherit its
// requirements.
module github.com/ForstaLabs/ephemeral-token-service/bench

go 1.26.0

replace github.com/ForstaLabs/ephemeral-token-service => ..

require (
	github.com/ForstaLabs/ephemeral-token-service v0.0.0-00010101000000-000000000000
	github.com/grpc-ecosystem/grpc-gateway/v2 v2.33.0
	golang.org/x/sys v0.50.0
	google.golang.org/grpc v1.85.0
)

require (
	golang.org/x/net v0.62.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	google.golang.org/genproto/googleapis/api v0.0.0-20261026165753-2ffab32bce7e // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20261026165753-2ffab32bce7e // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)
