package server

import (
	"google.golang.org/grpc"
	channelz "google.golang.org/grpc/channelz/service"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/reflection"

	"github.com/ForstaLabs/ephemeral-token-service/internal/call"
)

// newChannelz tells what gRPC knows of its servers, channels and connections: addresses, certificates, counters, flow control; nothing
// of what is in a call. Reflection is for grpcurl. It has no listener of its own.
//
// Importing the package that it is from has grpc-go count for the whole process, asked for or not: a few atomic additions and readings
// of the clock per call.
func newChannelz() *grpc.Server {
	s := grpc.NewServer(
		grpc.MaxRecvMsgSize(call.MaxMessageBytes),
		grpc.ForceServerCodecV2(encoding.GetCodecV2(proto.Name)), // as on the gRPC listener
		grpc.UnaryInterceptor(call.Recover),
		grpc.StreamInterceptor(recoverStream),
	)
	channelz.RegisterChannelzServiceToServer(s)
	reflection.Register(s)
	return s
}
